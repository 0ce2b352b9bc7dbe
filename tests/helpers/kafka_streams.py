"""Events in topics, streams that read them to the end, and comparison with a clean pass."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.kafka.source import KafkaSource
from rec2pm_jax.stream.lines.sources import FileSource
from rec2pm_jax.stream.options import EngineOptions, Worker
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.runner import Intervals, run_stream
from rec2pm_jax.stream.stores.base import MemoryStore, Store
from tests.helpers.kafka_broker import Broker
from tests.helpers.stores import Contents, read_users
from tests.helpers.stream import raw_events

Messages = list[tuple[str | None, bytes]]


def make_messages(dataset: Dataset, blocks: int, users: int = 5) -> Messages:
    """Return events of `blocks` times `users` users, keyed by user, those of a block interleaved."""
    found: Messages = []
    for block in range(blocks):
        left = {f"{block} {u}": iter(raw_events(dataset, u)) for u in range(users)}
        while left:
            for user, events in list(left.items()):
                event = next(events, None)
                if event is None:
                    del left[user]
                else:
                    found.append((user, json.dumps({"user": user} | event).encode()))
    return found


def offsets(metadata: Mapping[str, bytes], topic: str) -> dict[str, int]:
    """Return the offset of each partition of a topic that a store has read."""
    prefix = f"kafka:{topic}/"
    return {
        name: json.loads(value)["offset"]
        for name, value in metadata.items()
        if name.startswith(prefix)
    }


def run_topic(
    model: Recommender,
    store: Store,
    address: str,
    *,
    worker: Worker = Worker(),  # noqa: B008
    stopped: Callable[[KafkaSource], bool],
    commit_s: float = 0.02,
    write: Callable[[str], None] = lambda line: None,
    in_order: bool = False,
):
    """Run a stream over a topic until `stopped(source)`; return (summary, source)."""
    engine = Engine(model, store, EngineOptions(worker=worker))
    source = KafkaSource(address, store, worker)
    try:
        summary = run_stream(
            engine,
            source,
            write,
            in_order=in_order,
            intervals=Intervals(commit_s),
            stopped=lambda: stopped(source),
        )
    finally:
        source.close()
    return summary, source


def at_end(broker: Broker, topic: str, timeout_s: float = 120.0) -> Callable[[KafkaSource], bool]:
    """Return a function that tells whether a source that has all partitions has read them."""
    ends, deadline = broker.ends(topic), time.monotonic() + timeout_s

    def stopped(source: KafkaSource) -> bool:
        assert time.monotonic() < deadline, (ends, dict(source.positions()))
        return offsets(source.positions(), topic) == ends

    return stopped


def clean_pass(model: Recommender, messages: Messages, path: Path) -> Engine:
    """Return an engine that has read the messages from a file."""
    path.write_bytes(b"".join(value + b"\n" for _, value in messages))
    engine = Engine(model, MemoryStore())
    run_stream(engine, FileSource(path, {}), lambda line: None)
    engine.commit({})
    return engine


def assert_same(model: Recommender, held: Contents, clean: Engine) -> None:
    """Check counts and states of all users, once updates that a kill has left are made."""
    store, form = MemoryStore(), clean.record_format
    store.put(held.records, clean.store.metadata(), held.states)
    engine = Engine(model, store)
    for user in held.records:
        engine.get_user(user)
    engine.commit({})
    found, wanted = read_users(store, form), read_users(clean.store, form)
    assert found.keys() == wanted.keys()
    for user in wanted:
        a, b = found[user], wanted[user]
        assert (a.events, a.last_time, a.pending) == (b.events, b.last_time, b.pending), user
        if b.memory is not None:
            memories = [np.frombuffer(x.memory, np.float32) for x in (a, b)]
            np.testing.assert_allclose(*memories, rtol=0, atol=1e-5)
