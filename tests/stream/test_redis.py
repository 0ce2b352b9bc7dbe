"""The shared store on a real server: several workers, a server that goes away, lost data."""

from __future__ import annotations

import json
import shutil
import threading
import time

import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.sources import FileSource
from rec2pm_jax.stream.options import EngineOptions, Worker
from rec2pm_jax.stream.runner import Intervals, run_stream
from rec2pm_jax.stream.stores.base import MAINTENANCE, MemoryStore
from rec2pm_jax.stream.stores.redis_store import RedisStore
from tests.helpers.redis_server import Server
from tests.helpers.stores import read_users
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path):
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config())


@pytest.fixture
def events(dataset, tmp_path):
    lines = [
        json.dumps({"user": f"{block} {u}"} | event)
        for block in range(20)
        for u in range(5)
        for event in raw_events(dataset, u)
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def clean_pass(model, path):
    engine = Engine(model, MemoryStore())
    run_stream(engine, FileSource(path, {}), print)
    return engine


def assert_same(model, store, clean):
    found, wanted = (read_users(s, clean.record_format) for s in (store, clean.store))
    assert found.keys() == wanted.keys()
    for user in wanted:
        a, b = found[user], wanted[user]
        assert (a.events, a.last_time, a.pending) == (b.events, b.last_time, b.pending)
        if b.memory is not None:
            memories = [np.frombuffer(x.memory, np.float32) for x in (a, b)]
            np.testing.assert_allclose(*memories, rtol=0, atol=1e-5)


def test_commits_from_several_threads_are_all_kept(server):
    """The commit thread writes users while the engine's thread notes new items."""
    store, failures = RedisStore(server.url), []

    def write(thread):
        try:
            for n in range(100):
                store.put({f"{thread} {n}": b"1"}, {})
        except UserError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(dict(store.items())) == 300
    store.close()


def test_protocol(server):
    store = RedisStore(server.url)
    users = {f"user {i}": bytes([i]) * (i + 1) for i in range(100)}
    store.put(users, {"input:a": b"5", "meaning": b"{}"})
    store.put({"user 7": b"new"}, {"input:a": b"6"})
    again = RedisStore(server.url)
    assert again.get(["user 7", "nobody"]) == [b"new", None]
    assert again.metadata() == {"input:a": b"6", "meaning": b"{}"}
    assert RedisStore(server.url, "1/2").metadata() == {"meaning": b"{}"}
    assert dict(again.items()) == users | {"user 7": b"new"}
    assert again.delete(["user 7", "nobody"]) == 1 and again.get(["user 7"]) == [None]
    again.compact()
    assert again.size() > 0
    with pytest.raises(UserError, match="another process writes as the same --worker"):
        store.put({"user 1": b"late"}, {})
    assert again.get(["user 1"]) == [users["user 1"]]


def test_maintenance_and_workers_refuse_each_other(server):
    worker = RedisStore(server.url, "0/2")
    worker.put({"u": b"1", "v": b"1"}, {"input:a": b"5"})
    tidy = RedisStore(server.url, MAINTENANCE)
    worker.put({"w": b"1"}, {"input:a": b"6"})  # opening alone disturbs nobody
    assert tidy.delete(["u", "nobody"]) == 1
    with pytest.raises(UserError, match="tidy_store or launch.rebuild_memory has written"):
        worker.put({"u": b"2"}, {"input:a": b"7"})
    again = RedisStore(server.url, "0/2")
    assert again.metadata() == {"input:a": b"6"} and again.get(["u"]) == [None]
    again.put({"u": b"2"}, {"input:a": b"7"})
    for write in (lambda: tidy.delete(["u"]), lambda: tidy.put({"u": b"3"}, {})):
        with pytest.raises(UserError, match="Another process has connected"):
            write()
    rebuilds = [RedisStore(server.url, MAINTENANCE) for _ in range(2)]
    with pytest.raises(UserError, match="another process writes"):
        rebuilds[0].put({"u": b"4"}, {})
    rebuilds[1].put({"u": b"5"}, {})
    assert again.get(["u", "v", "w"]) == [b"5", b"1", b"1"]
    assert [s.claim("x", b"%d" % i) for i, s in enumerate((again, tidy))] == [b"0", b"0"]


def test_workers_share_users(server, model, events):
    stores = [RedisStore(server.url, f"{i}/3") for i in range(3)]
    done = []
    for i, store in enumerate(stores):
        engine = Engine(model, store, EngineOptions(worker=Worker(i, 3)))
        done.append(run_stream(engine, FileSource(events, store.metadata()), print))
    clean = clean_pass(model, events)
    assert sum(s.events for s in done) == sum(1 for _ in open(events))
    assert all(s.events and s.other_workers for s in done)
    assert_same(model, stores[0], clean)
    with pytest.raises(UserError, match="states of workers 3, not 1"):
        Engine(model, RedisStore(server.url))


def test_a_server_that_is_killed_and_comes_back(server, model, events):
    store = RedisStore(server.url)
    engine = Engine(model, store, EngineOptions(max_cached_users=1))
    over = threading.Event()

    def restarts():
        while not over.wait(0.3):
            server.kill()
            time.sleep(0.2)
            server.start()

    nemesis = threading.Thread(target=restarts)
    nemesis.start()
    try:
        source = Slow(FileSource(events, store.metadata()))
        summary = run_stream(engine, source, print, intervals=Intervals(0.02))
    finally:
        over.set()
        nemesis.join()
    assert summary.events == sum(1 for _ in open(events)) and summary.commits > 5
    assert_same(model, store, clean_pass(model, events))


class Slow:
    """A source that takes some seconds."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, max_lines, timeout_s):
        time.sleep(0.02)
        return self._source.read(40, timeout_s)


def test_a_server_that_lost_commits_is_refused(server, tmp_path):
    store = RedisStore(server.url)
    store.put({"u": b"1"}, {"input:a": b"5"})
    server.kill()
    shutil.rmtree(tmp_path / "server" / "appendonlydir", ignore_errors=True)
    server.start()
    with pytest.raises(UserError, match="came back without what it had acknowledged"):
        store.put({"u": b"2"}, {"input:a": b"9"})


def test_a_server_that_stays_away(server):
    store = RedisStore(server.url, patience_s=0.5)
    server.kill()
    with pytest.raises(UserError, match="has not answered for 0.5 s.*start the server"):
        store.put({"u": b"2"}, {})
    with pytest.raises(UserError, match="no address of a Redis server"):
        RedisStore("redis://:port:")
