"""Requests that wait at the same time are answered as they would be one by one."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from rec2pm_jax.serve.engine_thread import EngineThread
from rec2pm_jax.stream.compute import compiled
from rec2pm_jax.stream.driver import Driver, Intervals
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import RejectedInput, parse_event
from rec2pm_jax.stream.lines.requests import Filters, ItemGroup, Request, SeenRule
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events

USERS = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("reader"), categories=3)


@pytest.fixture(scope="module")
def engine(dataset):
    model = make_recommender(dataset, make_config(times=True, types=2))
    engine = Engine(model, MemoryStore(), EngineOptions(seen="events"))
    for user in range(USERS):
        engine.ingest([parse_event(event, str(user)) for event in raw_events(dataset, user)])
    return engine


def draw_requests(dataset, rng, count):
    """Return requests of known and new users, with filters of all kinds, and some that are wrong."""
    items = dataset.items.raw_ids[1:]
    filters = [
        Filters(),
        Filters(),
        Filters(exclude_seen=SeenRule()),
        Filters(exclude_seen=SeenRule(days=2.0)),
        Filters(candidates=tuple(rng.sample(items, 4))),
        Filters(deny=ItemGroup(categories=("c1",))),
        Filters(candidates=("no such item",)),
    ]
    return [
        Request(
            user=str(rng.randrange(USERS + 2)),
            k=rng.choice([1, 3, 10, 20, 25, 99]),
            exclude=tuple(rng.sample(items, rng.choice([0, 2, 20]))),
            time=rng.choice([None, 2_000_000_000]),
            filters=rng.choice(filters),
        )
        for _ in range(count)
    ]


def answer_alone(engine, request):
    try:
        return engine.recommend(*request)
    except RejectedInput as error:
        return error


def assert_same(found, wanted):
    if isinstance(wanted, RejectedInput):
        assert str(found) == str(wanted)
        return
    assert found[:1] + found[2:] == wanted[:1] + wanted[2:]
    assert [item.item for item in found.items] == [item.item for item in wanted.items]
    for one, other in zip(found.items, wanted.items, strict=True):
        assert one.score == (other.score and pytest.approx(other.score, abs=1e-4))


@pytest.mark.parametrize("count", [0, 1, 3, 9, 30])
def test_answers_together_are_those_one_by_one(engine, dataset, count):
    requests = draw_requests(dataset, random.Random(count), count)
    found = list(engine.recommend_all(requests))
    assert sorted(number for number, _ in found) == list(range(count))
    for number, answer in found:
        assert_same(answer, answer_alone(engine, requests[number]))


def test_a_batch_is_one_read(engine, monkeypatch):
    sizes = []
    read_best = compiled.read_best

    def counted(method, k, params, catalogue, state, *rest):
        sizes.append(len(state.groups))
        return read_best(method, k, params, catalogue, state, *rest)

    monkeypatch.setattr(compiled, "read_best", counted)
    engine.sessions.clear()
    misses = engine.sessions.hits + engine.sessions.misses
    list(engine.recommend_all([Request(str(user % USERS), 5) for user in range(19)]))
    assert sizes == [8, 8, 4]  # 8, 8, and 3 that are padded
    assert engine.sessions.hits + engine.sessions.misses == misses  # nobody was read alone
    hits = engine.sessions.hits
    for user in ("0", "1", "2"):
        engine.recommend(user, 5)  # opens a session
    list(engine.recommend_all([Request(str(user), 5) for user in range(6)]))
    assert sizes == [8, 8, 4, 4] and engine.sessions.hits == hits + 3


def test_requests_that_wait_in_a_service_are_answered_together(engine):
    driver = Driver(engine, Intervals(float("inf")))
    together = []
    answer_all = driver.answer_all
    driver.answer_all = lambda requests: together.append(len(requests)) or answer_all(requests)
    thread = EngineThread(driver)
    busy, may_go_on = threading.Event(), threading.Event()

    def wait(_):
        busy.set()
        assert may_go_on.wait(60)

    async def ask():
        first = asyncio.create_task(thread.call(wait))
        while not busy.is_set():
            await asyncio.sleep(0.01)
        requests = [*(Request(str(user), 3) for user in range(5)), Request("0", 999)]
        tasks = [asyncio.create_task(thread.answer(request)) for request in requests]
        await asyncio.sleep(0.05)  # all of them are in the queue
        may_go_on.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    thread.start()
    *answers, refused = asyncio.run(ask())
    thread.stop()
    assert together == [6]
    assert isinstance(refused, RejectedInput) and "between 1 and the 30 items" in str(refused)
    for user, answer in enumerate(answers):
        assert_same(answer, engine.recommend(str(user), 3))
    assert driver.summary.answers == 5 and len(driver.summary.read_ms) == 5
