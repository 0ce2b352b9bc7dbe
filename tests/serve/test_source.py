"""A service that reads a source beside HTTP: each event counts once, over restarts too."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve.engine_thread import EngineThread
from rec2pm_jax.serve.opening import check_events
from rec2pm_jax.stream.driver import Driver, Intervals
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.feed import NO_READER, Feed
from rec2pm_jax.stream.lines.events import Event
from rec2pm_jax.stream.lines.requests import Request
from rec2pm_jax.stream.lines.sources import FileSource
from rec2pm_jax.stream.options import EngineOptions, Worker
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config(times=True, types=2))


def start(model, store, path):
    """Return a thread that reads a file and serves."""
    driver = Driver(Engine(model, store, EngineOptions()), Intervals(0.02))
    feed = Feed(driver, FileSource(path, store.metadata(), growing=True), write=None)
    thread = EngineThread(driver, feed=feed)
    thread.start()
    return thread


def wait_until_read(thread, user, count):
    async def count_events():
        return await thread.call(lambda driver: driver.engine.get_user(user).events)

    end = time.monotonic() + 60
    while asyncio.run(count_events()) < count and time.monotonic() < end:
        time.sleep(0.02)


def test_lines_and_bodies_change_the_same_users_once(model, dataset, tmp_path):
    history = [{"user": "both"} | event for event in raw_events(dataset, 0)]
    first, second, over_http = history[:-4], history[-4:-2], history[-2:]
    path = tmp_path / "events.jsonl"
    lines = [json.dumps(event) for event in first]
    path.write_text("\n".join([*lines, '{"user": "both", "recommend": 3}', "no JSON", ""]))
    store = MemoryStore()
    thread = start(model, store, path)
    wait_until_read(thread, "both", len(first))
    summary = thread.driver.summary
    thread.stop()
    assert summary.events == len(first) and summary.skipped == {NO_READER: 1, "malformed": 1}

    with path.open("a") as file:
        file.write("".join(json.dumps(event) + "\n" for event in second))
    thread = start(model, store, path)  # goes on behind what was committed
    wait_until_read(thread, "both", len(first) + len(second))
    applied = asyncio.run(thread.apply([Event(**event) for event in over_http]))
    answer = asyncio.run(thread.answer(Request("both", 5, (), over_http[-1]["time"])))
    assert thread.driver.summary.events == len(second) + len(over_http)
    thread.stop()
    assert applied.accepted == len(over_http) and applied.committed

    user = model.observe(model.new_user(), [{k: e[k] for k in e if k != "user"} for e in history])
    wanted = model.recommend(user, 5, time=over_http[-1]["time"])
    assert [item.item for item in answer.items] == [item.item for item in wanted]
    assert answer.events == len(history)


@pytest.mark.parametrize(
    ("journal", "worker", "events", "text"),
    [
        ("j", Worker(), "kafka://h:1/t", "--journal is for a change"),
        ("", Worker(0, 2), "kafka://h:1/t", "must be the only one"),
        ("", Worker(), "kafka://h:1/t?group=g", "must be the only one"),
    ],
)
def test_what_a_source_does_not_go_with(journal, worker, events, text):
    with pytest.raises(UserError, match=text):
        check_events(events, journal, worker)
    check_events("", journal, worker)
    check_events("kafka://h:1/t", "", Worker())
