"""Folding beside the stream: how fast the thread is changes nothing, and users away are not lost."""

from __future__ import annotations

import json
import threading
import time

import jax
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream import runner
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.events import Event
from rec2pm_jax.stream.memories import Memories
from rec2pm_jax.stream.runner import Pace, run_stream
from rec2pm_jax.stream.store import MemoryStore
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
FIRST_FOLD = SEGMENT + RECENT  # events that make the first segment due


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
    """Open, or the thread waits; a request of its own is folded all the same."""
    gate, fold = threading.Event(), Memories.fold

    def wait(self, *heads):
        if threading.current_thread() is not threading.main_thread():
            assert gate.wait(60)
        return fold(self, *heads)

    monkeypatch.setattr(Memories, "fold", wait)
    return gate


def apply(engine, events, users=("u",)):
    done, refused = engine.apply([Event(user, **e) for e in events for user in users])
    assert not refused
    return done


def assert_same_user(engine, user, events):
    """As one who was never away."""
    model = engine.recommender
    expected = model.observe(model.new_user(), events)
    got = engine.user(user)
    assert (got.events, got.last_time) == (expected.events, expected.last_time)
    jax.tree.map(np.testing.assert_array_equal, got.pending, expected.pending)
    assert got.state.segments == expected.state.segments
    np.testing.assert_allclose(got.state.memory, expected.state.memory, rtol=0, atol=1e-5)


def test_events_come_while_a_user_is_away(engine, events, gate):
    apply(engine, events[:FIRST_FOLD])
    engine.folding.begin(8)
    assert (engine.folding.away, engine.folding.due, engine.folding.ready) == (1, 0, False)
    apply(engine, events[FIRST_FOLD:40])  # several segments more
    assert engine.folding.due == 0  # one at a time, in order
    gate.set()
    engine.folding.settle()
    assert engine.folding.due == 1
    engine.fold()
    assert_same_user(engine, "u", events[:40])


def test_a_commit_of_a_user_who_is_away_is_as_good(engine, events, gate):
    apply(engine, events[:FIRST_FOLD])
    engine.folding.begin(8)
    engine.snapshot({})
    while engine.commits.busy:
        engine.commits.advance(1)
    engine.options = engine.options._replace(max_live=0)
    engine.trim(100)
    assert engine.live_users == 1  # who is away may not be let go, though committed
    apply(engine, events[FIRST_FOLD:20])
    again = Engine(engine.recommender, engine.store)
    gate.set()
    assert_same_user(again, "u", events[:FIRST_FOLD])
    assert_same_user(engine, "u", events[:20])
    engine.commit({})
    assert_same_user(Engine(engine.recommender, engine.store), "u", events[:20])


def test_a_request_waits_for_its_own_user_only(engine, events, gate):
    apply(engine, events[:FIRST_FOLD], users=("a", "b"))
    engine.folding.begin(1)
    assert engine.recommend("b", 3).updates == 1  # is due, and folded before the one who is away
    assert engine.folding.away == 1
    threading.Timer(0.2, gate.set).start()
    began = time.monotonic()
    assert engine.recommend("a", 3).updates == 1
    assert time.monotonic() - began > 0.1
    assert_same_user(engine, "a", events[:FIRST_FOLD])


def test_batches_do_not_depend_on_how_fast_the_thread_is(dataset, events, monkeypatch):
    """Nor on how fast the input is: same cuts, same batches, and so the same memories to the bit."""
    fold, delays = Memories.fold, np.random.default_rng(0)
    seen = []

    class Source(ListSource):
        def read(self, most, wait):
            time.sleep(delays.choice([0, 0.01]))
            return super().read(most, wait)

    def slow(self, states, segments):
        time.sleep(delays.choice([0, 0.002, 0.02]))
        seen[-1].append((states.segments.tolist(), segments.ids.tolist()))
        return fold(self, states, segments)

    monkeypatch.setattr(Memories, "fold", slow)
    monkeypatch.setattr(runner, "MICRO_BATCH", 25)
    monkeypatch.setattr(runner, "MAX_BATCH", 3)
    turns = np.random.default_rng(1).permutation(np.repeat(np.arange(USERS), len(events)))
    waiting = [iter(events) for _ in range(USERS)]
    lines = [json.dumps({"user": f"u{u}"} | next(waiting[u])).encode() + b"\n" for u in turns]
    memories = []
    for _ in range(3):
        seen.append([])
        engine = Engine(make_recommender(dataset, make_config()), MemoryStore())
        run_stream(engine, Source(lines), print, pace=Pace(0.0))
        memories.append([engine.user(f"u{u}").state.memory for u in range(USERS)])
    assert len(seen[0]) > 5 and max(len(ids) for _, ids in seen[0]) > 1
    assert seen[0] == seen[1] == seen[2]
    np.testing.assert_array_equal(memories[0], memories[1])
    np.testing.assert_array_equal(memories[0], memories[2])


def test_what_the_thread_meets_is_not_lost(engine, events, monkeypatch):
    def fail(self, *heads):
        raise UserError("no memory left")

    monkeypatch.setattr(Memories, "fold", fail)
    apply(engine, events[:FIRST_FOLD])
    engine.folding.begin(8)
    with pytest.raises(UserError, match="no memory left"):
        engine.folding.settle()
