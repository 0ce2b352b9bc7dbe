"""Requests overtake events of others; a place in the input is named once all before it is done."""

from __future__ import annotations

import gc
import json

import pytest

from rec2pm_jax.stream.driver import RESPONSIVE, Driver, Intervals
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.feed import Feed
from rec2pm_jax.stream.lines.events import Event
from rec2pm_jax.stream.runner import run_stream
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.stores import contents
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config())


class Lines:
    """A source of lines that are all there."""

    def __init__(self, lines):
        self.done, self._lines, self._at = False, lines, 0

    def read(self, max_lines, timeout_s):
        taken = self._lines[self._at : self._at + max_lines]
        self._at += len(taken)
        self.done = not taken
        return taken

    def positions(self):
        return {"input:lines": str(self._at).encode()}

    def notes(self):
        return []

    def close(self):
        pass


def make_lines(dataset, others=200):
    """Return events of many users with two of the asker among them, and a request after each."""
    [first, second], event = raw_events(dataset, 1)[:2], raw_events(dataset, 0)[0]
    crowd = [{"user": f"u{n}"} | event for n in range(others)]
    ask = {"user": "asker", "recommend": 3}
    objects = [*crowd, {"user": "asker"} | first, ask, *crowd, {"user": "asker"} | second, ask]
    return [json.dumps(one).encode() + b"\n" for one in objects]


@pytest.mark.parametrize("in_order", [False, True])
def test_a_request_overtakes_events_of_others(dataset, model, in_order):
    engine, answers = Engine(model, MemoryStore()), []
    driver = Driver(engine, Intervals())
    feed = Feed(driver, Lines(make_lines(dataset)), answers.append, in_order=in_order)
    applied = []
    while len(answers) < 2:
        feed.read(RESPONSIVE.lines, 0)
        applied.append(driver.summary.events)
    assert [json.loads(answer)["events"] for answer in answers] == [1, 2]
    assert applied[-1] == (402 if in_order else 2 + RESPONSIVE.lines)
    assert feed.is_waiting is not in_order
    assert feed.positions() == {"input:lines": b"404"}  # nothing before it waits any more
    assert not feed.is_waiting and driver.summary.events == 402


@pytest.mark.parametrize("in_order", [False, True])
def test_the_order_changes_no_state(dataset, model, in_order):
    lines, stores = make_lines(dataset), []
    for part in (lines, [line for line in lines if b"recommend" not in line]):
        engine = Engine(model, MemoryStore())
        summary = run_stream(engine, Lines(part), lambda line: None, in_order=in_order)
        engine.commit({})
        assert summary.events == 402
        stores.append(contents(engine.store))
    assert stores[0] == stores[1]


def test_skipped_events_are_named_by_their_lines(dataset, model):
    lines = make_lines(dataset)
    lines[150] = json.dumps({"user": "asker", "item": "i1", "time": "never"}).encode()
    lines[250] = json.dumps({"user": "u3", "item": "i1", "time": 5}).encode()
    summary = run_stream(Engine(model, MemoryStore()), Lines(lines), lambda line: None)
    examples = [text for texts in summary.examples.values() for text in texts]
    assert any(text.startswith("line 151: ") for text in examples), examples
    assert any(text.startswith("line 251: ") for text in examples), examples


def test_the_garbage_collector_does_not_look_at_users(dataset, model):
    """It would look at all that were loaded since its last run, while requests wait."""
    store = MemoryStore()
    for engine in (Engine(model, store), Engine(model, store)):  # new users, and stored ones
        engine.apply([Event("u", **event) for event in raw_events(dataset, 0)[:3]])
        [user] = engine._users.find(["u"]).values()
        assert not gc.is_tracked(user) and not gc.is_tracked(user.pending)
        engine.commit({})
