"""Updates beside the stream: the speed of the thread changes nothing, and no event is lost."""

from __future__ import annotations

import json
import threading
import time

import jax
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream import driver
from rec2pm_jax.stream.compute.updater import MemoryUpdater
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import Event
from rec2pm_jax.stream.runner import Intervals, run_stream
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.stream import (
    RECENT,
    SEGMENT,
    ListSource,
    make_config,
    make_data,
    make_recommender,
    raw_events,
)

USERS = 6
FIRST_UPDATE = SEGMENT + RECENT  # events that fill the first segment


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("folding"))


@pytest.fixture
def engine(dataset):
    return Engine(make_recommender(dataset, make_config()), MemoryStore())


@pytest.fixture
def events(dataset):
    return raw_events(dataset, 0, 50)


@pytest.fixture
def gate(monkeypatch):
    """An event that the thread waits for; updates in the main thread do not."""
    gate, compute = threading.Event(), MemoryUpdater.compute

    def wait(self, inputs):
        if threading.current_thread() is not threading.main_thread():
            assert gate.wait(60)
        return compute(self, inputs)

    monkeypatch.setattr(MemoryUpdater, "compute", wait)
    return gate


def apply(engine, events, users=("u",)):
    done, rejected = engine.apply([Event(user, **e) for e in events for user in users])
    assert not rejected
    return done


def assert_same_user(engine, user, events):
    """The user equals one that was updated at once."""
    model = engine.recommender
    expected = model.observe(model.new_user(), events)
    got = engine.get_user(user)
    assert (got.events, got.last_time) == (expected.events, expected.last_time)
    jax.tree.map(np.testing.assert_array_equal, got.pending, expected.pending)
    assert got.state.segments == expected.state.segments
    np.testing.assert_allclose(got.state.memory, expected.state.memory, rtol=0, atol=1e-5)


def test_events_come_while_a_memory_is_computed(engine, events, gate):
    apply(engine, events[:FIRST_UPDATE])
    queue = engine.update_queue
    queue.start_batch(8)
    assert (queue.num_running, queue.num_waiting, queue.is_ready) == (1, 0, False)
    apply(engine, events[FIRST_UPDATE:40])  # several segments more
    assert queue.num_waiting == 0  # one at a time, in order
    gate.set()
    queue.finish_batch()
    assert queue.num_waiting == 1
    queue.finish_all()
    assert_same_user(engine, "u", events[:40])


def test_a_commit_while_a_memory_is_computed_loses_nothing(engine, events, gate):
    apply(engine, events[:FIRST_UPDATE])
    engine.update_queue.start_batch(8)
    engine.begin_commit({})
    while engine.commit_writer.is_busy:
        engine.commit_writer.advance(1)
    engine.options = engine.options._replace(max_cached_users=0)
    engine.evict(100)
    assert engine.gauges().cached_users == 1  # kept while its memory is computed
    apply(engine, events[FIRST_UPDATE:20])
    again = Engine(engine.recommender, engine.store)
    gate.set()
    assert_same_user(again, "u", events[:FIRST_UPDATE])
    assert_same_user(engine, "u", events[:20])
    engine.commit({})
    assert_same_user(Engine(engine.recommender, engine.store), "u", events[:20])


def test_a_request_waits_for_its_own_user_only(engine, events, gate):
    apply(engine, events[:FIRST_UPDATE], users=("a", "b"))
    engine.update_queue.start_batch(1)
    assert engine.recommend("b", 3).updates == 1  # updated ahead of the running batch
    assert engine.update_queue.num_running == 1
    threading.Timer(0.2, gate.set).start()
    began = time.monotonic()
    assert engine.recommend("a", 3).updates == 1
    assert time.monotonic() - began > 0.1
    assert_same_user(engine, "a", events[:FIRST_UPDATE])


def test_batches_do_not_depend_on_how_fast_the_thread_is(dataset, events, monkeypatch):
    """Nor on the speed of the input: equal cuts give equal batches, and so bit-equal memories."""
    compute, delays = MemoryUpdater.compute, np.random.default_rng(0)
    seen = []

    class Source(ListSource):
        def read(self, max_lines, timeout_s):
            time.sleep(delays.choice([0, 0.01]))
            return super().read(max_lines, timeout_s)

    def slow(self, inputs):
        time.sleep(delays.choice([0, 0.002, 0.02]))
        seen[-1].append((inputs.states.segments.tolist(), inputs.events.ids.tolist()))
        return compute(self, inputs)

    monkeypatch.setattr(MemoryUpdater, "compute", slow)
    monkeypatch.setattr(driver, "BULK", driver.BULK._replace(lines=25, updated=3))
    turns = np.random.default_rng(1).permutation(np.repeat(np.arange(USERS), len(events)))
    waiting = [iter(events) for _ in range(USERS)]
    lines = [json.dumps({"user": f"u{u}"} | next(waiting[u])).encode() + b"\n" for u in turns]
    memories = []
    for _ in range(3):
        seen.append([])
        engine = Engine(make_recommender(dataset, make_config()), MemoryStore())
        run_stream(engine, Source(lines), print, intervals=Intervals(0.0))
        memories.append([engine.get_user(f"u{u}").state.memory for u in range(USERS)])
    assert len(seen[0]) > 5 and max(len(ids) for _, ids in seen[0]) > 1
    assert seen[0] == seen[1] == seen[2]
    np.testing.assert_array_equal(memories[0], memories[1])
    np.testing.assert_array_equal(memories[0], memories[2])


def test_errors_of_the_thread_are_raised(engine, events, monkeypatch):
    def fail(self, inputs):
        raise UserError("no memory left")

    monkeypatch.setattr(MemoryUpdater, "compute", fail)
    apply(engine, events[:FIRST_UPDATE])
    engine.update_queue.start_batch(8)
    with pytest.raises(UserError, match="no memory left"):
        engine.update_queue.finish_batch()
