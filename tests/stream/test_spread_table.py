"""Streams, bulk recommendations and rebuilt memories from a sharded table: those of the whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.stream.bulk.run import BulkOptions, recommend_all
from rec2pm_jax.stream.bulk.users import DatasetUsers, StoreUsers
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.requests import Request
from rec2pm_jax.stream.lines.sources import FileSource
from rec2pm_jax.stream.load import make_recommender
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.plan import plan_search
from rec2pm_jax.stream.rebuild import rebuild
from rec2pm_jax.stream.runner import run_stream
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.sharded import config_of, shard_table
from tests.helpers.stores import contents, read_users
from tests.helpers.stream import make_data, random_params, raw_events

K = 6
CONFIG = config_of(
    data={"segment": 5, "recent": 2}, model={"use_times": True}, method={"exact_entries": 4}
)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("spread"))


@pytest.fixture(scope="module")
def models(dataset):
    """(devices -> recommender with the table over so many devices; 0: with the whole table)."""
    made = {}

    def model(devices):
        if devices not in made:
            method = make_method(CONFIG, dataset.num_items)
            params = random_params(method)
            if devices:
                table = shard_table(np.asarray(method.network.table(params)), devices)
                params = method.network.with_table(params, table)
            made[devices] = make_recommender(
                CONFIG, params, dataset, trained_items=dataset.num_items
            )
        return made[devices]

    return model


def rebuilt(model, dataset):
    store = MemoryStore()
    rebuild(model, dataset, store, EngineOptions(seen="events"))
    return store


@pytest.mark.parametrize("devices", [slow(1), slow(8)])
def test_memories_are_those_of_the_whole_table(dataset, models, devices):
    whole, spread = models(0), models(devices)
    assert spread.identity == whole.identity
    kept = []
    for model in (whole, spread):  # a store of one is a store of the other
        store = rebuilt(model, dataset)
        sources = StoreUsers(whole, store, now=0.0), StoreUsers(model, store, now=0.0)
        users = [source.take(source.names) for source in sources]
        assert [user.memory for user in users[0]] == [user.memory for user in users[1]]
        kept.append((users[0], sources[0].updater.stack_states(users[0])))
    (expected, states), (found, spread_states) = kept
    assert [user.pending for user in found] == [user.pending for user in expected]
    np.testing.assert_allclose(spread_states.memory, states.memory, atol=2e-5)
    for got, want in zip(spread_states.exact, states.exact, strict=True):
        np.testing.assert_array_equal(got, want)
    assert np.any(states.exact.items) and states.groups.any()


def make_stream(dataset):
    """Return lines of all users in turns: events, and requests with several filters."""
    lines = []
    for number in range(12):
        for user in range(0, dataset.num_users, 3):
            events = raw_events(dataset, user)
            part = events[3 * number : 3 * number + 3]
            lines += [{"user": f"u{user}"} | event for event in part]
            if not part or number % 2:
                continue
            asked = {"user": f"u{user}", "recommend": K, "time": part[-1]["time"] + 3600}
            filters = [{}, {"exclude": ["i3"]}, {"candidates": ["i4", "i9", "i2", "i7"]}]
            lines.append(asked | filters[user // 3 % 3])
    return [json.dumps(line).encode() + b"\n" for line in lines]


@pytest.mark.parametrize("devices", [slow(2), slow(4), 8])
def test_a_stream_answers_as_from_the_whole_table(dataset, models, devices, tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(make_stream(dataset)))
    answers, engines = [], []
    for number in (0, devices):
        engine, found = Engine(models(number), MemoryStore()), []
        run_stream(engine, FileSource(path, {}), lambda line, f=found: f.append(json.loads(line)))
        engine.commit({})
        answers.append(found)
        engines.append(engine)
    assert engines[1].update_queue.num_updates == engines[0].update_queue.num_updates > 10
    assert len(answers[0]) == len(answers[1]) > 12
    for expected, got in zip(*answers, strict=True):
        items = [[item["item"] for item in one["items"]] for one in (expected, got)]
        assert items[0] == items[1] and got["events"] == expected["events"]
        scores = [[item["score"] for item in one["items"]] for one in (expected, got)]
        np.testing.assert_allclose(*scores, rtol=1e-4)
    assert contents(engines[1].store).records == contents(engines[0].store).records
    users = [read_users(engine.store, engine.record_format) for engine in engines]
    for name, user in users[0].items():
        if user.memory:
            memories = [np.frombuffer(part[name].memory, np.float32) for part in users]
            finite = np.isfinite(memories[0])  # the exact memory lies behind the vectors
            np.testing.assert_allclose(*(m[finite] for m in memories), rtol=1e-4, atol=2e-5)


def test_requests_that_wait_share_a_read(dataset, models):
    """Also from a spread table."""
    time = dataset.time_origin + 4 * 86_400
    requests = [Request(f"u{user}", K, time=time) for user in range(5)]
    found = []
    for number in (0, 8):
        engine = Engine(
            models(number), rebuilt(models(number), dataset), EngineOptions(seen="events")
        )
        answers = dict(engine.recommend_all(requests))
        found.append([[item.item for item in answers[n].items] for n in range(5)])
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_command_divides_the_table_of_a_run(dataset, tmp_path):
    """Real processes: a run over four devices is streamed from one, two and four."""
    flags = "--xla_force_host_platform_device_count=4"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}

    def launch(name, **flags):
        command = [sys.executable, "-m", f"launch.{name}", f"--workdir={tmp_path}/run"]
        command += [f"--{flag}={value}" for flag, value in flags.items()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    config = {
        "data.segment": 5,
        "data.segments": 2,
        "loss.negatives": 8,
        "model.dim": 16,
        "model.layers": 1,
        "model.table": "sharded",
        "optim.table_learning_rate": 0.05,
        "train.batch_size": 8,
        "train.steps": 3,
        "compute.devices": 0,
    }
    chosen = {f"config.{name}": value for name, value in config.items()}
    launch("train", config="base", data=dataset.path, **chosen)
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(make_stream(dataset)))
    answers = []
    for devices in (1, 2, 4):
        output = tmp_path / f"answers{devices}.jsonl"
        report = launch("stream", events=path, output=output, devices=devices)
        assert "memory updates" in report
        lines = map(json.loads, output.read_text().splitlines())
        answers.append([(one["events"], [item["item"] for item in one["items"]]) for one in lines])
    assert answers[0] == answers[1] == answers[2] and len(answers[0]) > 12
    store = tmp_path / "store"
    launch("rebuild_memory", data=dataset.path, output=store, devices=2)
    launch("stream", events=path, output=tmp_path / "more.jsonl", store=store, devices=4)


def bulk_rows(model, source, folder, filters, time):
    search = plan_search(model.catalogue, K, (), filters, time)
    options = BulkOptions(batch_size=2, users_per_file=99)
    recommend_all(source, ["nobody", *source.names], search, time, folder, {}, options)
    return pl.read_parquet(folder / "part-00000.parquet").rows()


@pytest.mark.parametrize(
    ("devices", "filters"),
    [
        slow(2, {}),
        (8, {"exclude_seen": {"days": 2}, "deny": ["i2"]}),
        slow(4, {"candidates": ["i4", "i9", "i2", "i7", "i3"], "exclude_seen": True}),
    ],
)
def test_rows_are_those_of_the_whole_table(dataset, models, tmp_path, devices, filters):
    time = dataset.time_origin + 4 * 86_400
    rows = []
    for number in (0, devices):
        source = DatasetUsers(models(number), one_pass=False, keeps_seen=True)
        rows.append(bulk_rows(models(number), source, tmp_path / str(number), filters, time))
    expected, found = rows
    assert [row[:4] for row in found] == [row[:4] for row in expected]
    scores = [[-1.0 if row[4] is None else row[4] for row in part] for part in rows]
    np.testing.assert_allclose(*scores, rtol=1e-4)
    assert len({row[2] for row in expected}) > 4


def test_the_table_is_not_copied(models):
    model = models(8)
    table, scored = model.method.network.table(model.params), model.scored_table
    places = [
        [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]
        for array in (table, scored)
    ]
    assert places[0] == places[1] and len(places[0]) == 8
