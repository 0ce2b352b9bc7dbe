"""Every event counts once: restarts, replays and kills give the states of one clean pass."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream import driver
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import Event
from rec2pm_jax.stream.lines.sources import DirectorySource, FileSource
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.runner import Intervals, run_stream
from rec2pm_jax.stream.stores.base import MemoryStore
from rec2pm_jax.stream.stores.lmdb_store import LmdbStore
from tests.helpers.data import prepare_log, random_log
from tests.helpers.stores import Connection, contents
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events, save_run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("restarts"))


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config(backbone="hstu", bias="position_time", types=2))


class Killed(Exception):
    """Stands for the end of the process: nothing after this instant happens."""


def open_engine(model, store, **options):
    return Engine(model, store, EngineOptions(**options))


def interleaved(dataset, turns, seq=False):
    """Return events of users u0, u1, .. in the order of `turns`."""
    waiting = {i: enumerate(raw_events(dataset, i)) for i in set(turns)}
    events = []
    for i in turns:
        n, event = next(waiting[i])
        events.append({"user": f"u{i}"} | event | ({"seq": n} if seq else {}))
    return events


def assert_same_states(engine, expected, users, atol=1e-5):
    for user in users:
        got, wanted = engine.get_user(user), expected.get_user(user)
        np.testing.assert_array_equal(got.pending.ids, wanted.pending.ids)
        np.testing.assert_array_equal(got.pending.times, wanted.pending.times)
        np.testing.assert_array_equal(got.pending.types, wanted.pending.types)
        assert (got.events, got.last_time) == (wanted.events, wanted.last_time)
        assert engine.record_format.decode(user, engine.store.get([user])[0]).watermark == (
            expected.record_format.decode(user, expected.store.get([user])[0]).watermark
        )
        np.testing.assert_allclose(got.state.memory, wanted.state.memory, rtol=0, atol=atol)
        jax.tree.map(np.testing.assert_array_equal, got.state[1:], wanted.state[1:])


def draw_turns(data, dataset, users=(0, 1, 4)):
    lengths = {i: data.draw(st.integers(1, int(dataset.lengths[i]))) for i in users}
    turns = np.repeat(list(lengths), list(lengths.values()))
    return np.random.default_rng(data.draw(st.integers(0, 2**32))).permutation(turns).tolist()


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_restarts_of_a_file(dataset, model, tmp_path_factory, data):
    """Kill the stream between any two steps of the loop, before, in and after commits."""
    turns = draw_turns(data, dataset)
    path = tmp_path_factory.mktemp("any") / "events.jsonl"
    path.write_bytes(b"".join(json.dumps(e).encode() + b"\n" for e in interleaved(dataset, turns)))
    users = {f"u{i}" for i in turns}
    clean = open_engine(model, MemoryStore())
    run_stream(clean, FileSource(path, {}), print)

    store = MemoryStore()
    for steps in [*data.draw(st.lists(st.integers(1, 12), max_size=5)), None]:
        connection = Connection(store)
        engine = open_engine(model, connection, max_cached_users=1)  # what is settled is read again
        source = FileSource(path, store.metadata())
        left = iter(range(steps or 10**9))

        def stopped(left=left, steps=steps):
            if next(left, None) is None:
                raise Killed
            return False

        with pytest.MonkeyPatch.context() as patch:
            lines, encoded = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3))
            patch.setattr(driver, "BULK", driver.BULK._replace(lines=lines, encoded=encoded))
            try:
                run_stream(engine, source, print, intervals=Intervals(0.0), stopped=stopped)
            except Killed:
                connection.die()
    assert_same_states(open_engine(model, store), clean, users)
    again = run_stream(open_engine(model, store), FileSource(path, store.metadata()), print)
    assert again.events == 0


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_replays_of_numbered_events(dataset, model, data):
    """Without positions: any part is sent again, and restarts lose nothing."""
    turns = draw_turns(data, dataset)
    events = [Event(**e) for e in interleaved(dataset, turns, seq=True)]
    clean = open_engine(model, MemoryStore())
    clean.ingest(events)
    clean.commit({})
    store, at, sent = MemoryStore(), 0, 0
    engine = open_engine(model, store)
    while at < len(events):
        back = max(0, at - data.draw(st.integers(0, 60)))
        at = min(len(events), at + 20 + data.draw(st.integers(0, 60)))
        done = engine.ingest(events[back:at])
        sent += done.events
        assert {why.reason for _, why in done.rejected} <= {"duplicate"}
        engine.commit({})
        if data.draw(st.booleans()):
            engine = open_engine(model, store)
    assert sent == len(events)
    assert_same_states(open_engine(model, store), clean, {e.user for e in events})


def test_equal_batches_give_equal_bits(dataset, model, monkeypatch):
    monkeypatch.setattr(driver, "BULK", driver.BULK._replace(lines=16))
    events = [Event(**e) for e in interleaved(dataset, [0, 1] * 20)]
    whole = open_engine(model, MemoryStore(), memory="int8")
    store = MemoryStore()
    for begin in range(0, len(events), 16):
        whole.ingest(events[begin : begin + 16])
        parts = open_engine(model, store, memory="int8")
        parts.ingest(events[begin : begin + 16])
        parts.commit({})
    whole.commit({})
    assert contents(whole.store) == contents(store)


def test_a_store_of_another_model_or_format_is_refused(dataset, model):
    store = MemoryStore()
    open_engine(model, store)
    other = make_recommender(dataset, make_config())
    with pytest.raises(UserError, match="states of model"):
        open_engine(other, store)
    with pytest.raises(UserError, match="states of memory 'float32', not 'int8'"):
        open_engine(model, store, memory="int8")


def test_far_future_events_do_not_lock_a_user_out(dataset, model):
    event = Event("u", **raw_events(dataset, 0, 1)[0])
    engine = Engine(
        model, MemoryStore(), EngineOptions(max_ahead_s=60), now=lambda: event.time + 0.0
    )
    done = engine.ingest([event._replace(time=event.time + 61), event, event])
    assert done.events == 2 and [why.reason for _, why in done.rejected] == ["far future"]
    assert engine.get_user("u").last_time == event.time


def test_ids_too_long_for_a_store_are_malformed(dataset, model):
    event = Event("é" * 300, **raw_events(dataset, 0, 1)[0])
    done = open_engine(model, MemoryStore()).ingest([event])
    assert done.events == 0 and [why.reason for _, why in done.rejected] == ["malformed"]


def test_another_file_of_the_same_name_is_refused(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntwo\nthr")
    source = FileSource(path, {})
    assert source.read(1, 0) == [b"one\n"]
    positions = dict(source.positions())
    path.write_bytes(b"one\ntwo\nthree\nfour")
    assert FileSource(path, positions).read(9, 0) == [b"two\n", b"three\n"]
    for text in (b"on", b"One\ntwo\n"):
        path.write_bytes(text)
        with pytest.raises(UserError, match="another file .* give the new file another name"):
            FileSource(path, positions)


def test_an_older_log_appended_to_the_data_moves_no_stored_time(dataset, model):
    """The dataset's origin of time drops; stored users, states of callers and answers stay."""
    history = raw_events(dataset, 0)
    older = model.with_time_origin(model.catalogue.time_origin - 60 * 17_000)
    assert older.identity == model.identity
    half = len(history) // 2
    store = MemoryStore()
    first = open_engine(model, store)
    first.ingest([Event("u", **e) for e in history[:half]])
    first.commit({})
    second = open_engine(older, store)
    second.ingest([Event("u", **e) for e in history[half:]])
    second.commit({})
    clean = open_engine(model, MemoryStore())
    clean.ingest([Event("u", **e) for e in history])
    clean.commit({})
    assert_same_states(second, clean, ["u"])
    now = history[-1]["time"] + 60
    expected = clean.recommend("u", 5, time=now).items
    assert [r.item for r in second.recommend("u", 5, time=now).items] == [r.item for r in expected]

    kept = model.observe(model.new_user(), history[:half])
    moved, same = older.observe(kept, []), older.observe(older.new_user(), history[:half])
    jax.tree.map(np.testing.assert_array_equal, moved.state[1:], same.state[1:])
    assert moved.state.exact.items.all()
    later = older.observe(kept, history[half:])
    wanted = older.observe(older.new_user(), history)
    np.testing.assert_array_equal(later.pending.times, wanted.pending.times)
    np.testing.assert_allclose(later.state.memory, wanted.state.memory, rtol=0, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, later.state[1:], wanted.state[1:])
    whole = model.observe(kept, history[half:])
    assert [r[:2] for r in older.recommend(whole, 5)] == [r[:2] for r in model.recommend(whole, 5)]


def test_a_store_outlives_an_older_log_appended_to_its_dataset(tmp_path):
    """The same with `append`: the whole path from two logs to an answer."""
    log = random_log(users=6, items=9, events=200)
    prepare_log(log, tmp_path)
    before = open_dataset(tmp_path / "data")
    older = log[:20].with_columns(pl.col("timestamp") - 511, user=pl.lit("older"))
    older.write_parquet(tmp_path / "older.parquet")
    append(
        PrepareOptions(
            "interactions", str(tmp_path / "data"), str(tmp_path / "older.parquet"), progress=False
        )
    )
    after = open_dataset(tmp_path / "data")
    assert after.time_origin % 60 == before.time_origin % 60 == 0  # see the exact memory
    assert after.time_origin < before.time_origin and after.num_items == before.num_items
    config = make_config(backbone="hstu", bias="position_time")
    events = [Event("u", f"i{i % 8}", 1_000 + 3 * i) for i in range(17)]
    parts, whole = MemoryStore(), open_engine(make_recommender(after, config), MemoryStore())
    for dataset, some in ((before, events[:9]), (after, events[9:])):
        engine = open_engine(make_recommender(dataset, config), parts)
        assert engine.ingest(some).events == len(some)
        engine.commit({})
    whole.ingest(events)
    got, wanted = (e.recommend("u", 5, time=1_100).items for e in (engine, whole))
    assert [r.item for r in got] == [r.item for r in wanted]
    np.testing.assert_allclose([r.score for r in got], [r.score for r in wanted], atol=1e-5)


@pytest.mark.parametrize("cut", range(1, 28))
def test_half_a_line_at_the_end_of_a_file_is_left_for_later(dataset, model, tmp_path, cut):
    """A file that is still being written: the first run stops before what is not JSON yet."""
    path = tmp_path / "events.jsonl"
    first, second = (json.dumps({"user": "u"} | e).encode() for e in raw_events(dataset, 0, 2))
    path.write_bytes(first + b"\n" + second[:cut])
    store = MemoryStore()
    source = FileSource(path, {})
    summary = run_stream(open_engine(model, store), source, print, intervals=Intervals(0.0))
    assert (summary.events, summary.skipped.total()) == (1, 0)
    assert "ends with half a line after byte" in source.notes()[0]
    path.write_bytes(first + b"\n" + second)
    for events in (1, 0):
        source = FileSource(path, store.metadata())
        again = run_stream(open_engine(model, store), source, print, intervals=Intervals(0.0))
        assert (again.events, again.skipped.total()) == (events, 0)
    assert "nothing new" in source.notes()[0]


def test_a_directory_is_read_in_order_and_in_whole_lines(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(b"3\n")
    (tmp_path / "a.jsonl").write_bytes(b"1\n2")
    (tmp_path / "other.txt").write_bytes(b"no\n")
    source = DirectorySource(tmp_path, {})
    got = []

    def poll():
        time.sleep(0.11)
        while lines := source.read(10, 0.0):
            got.extend(lines)

    poll()
    poll()
    assert got == [b"1\n", b"3\n"]
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b"2\n4")
    (tmp_path / "c.jsonl").write_bytes(b"5\n")
    poll()
    poll()
    assert got[2:] == [b"22\n", b"5\n"]
    again = DirectorySource(tmp_path, source.positions())
    assert again.read(10, 0.3) == []
    assert not source.done


def start_cli(workdir, events, store, *more):
    flags = [f"--workdir={workdir}", f"--events={events}", f"--store={store}", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "launch.stream", *flags, f"--output={store}.answers"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"XLA_FLAGS": ""},
    )


@pytest.mark.slow
@pytest.mark.parametrize("kills", [int(os.environ.get("STREAM_KILLS", "8"))])
def test_kill_9_under_load(dataset, tmp_path, kills):
    """Kill processes at any instant, from their start to the middle of a commit."""
    config, rng = make_config(), random.Random(0)
    save_run(tmp_path / "run", dataset, config)
    model = make_recommender(dataset, config)
    turns = list(range(12)) * 25
    rng.shuffle(turns)
    history = raw_events(dataset, 0, 25)
    lines = []
    blocks = 50 * kills  # of the same users under other names: 15,000 lines for every kill
    for block in range(blocks):
        left = {u: iter(history) for u in range(12)}
        lines += [{"user": f"{block} {u}"} | next(left[u]) for u in turns]
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    path = incoming / "events.jsonl"
    encoded = [json.dumps(line).encode() + b"\n" for line in lines]
    each = len(lines) // kills  # for every kill: no process finds nothing left to do
    store, deaths, offsets = tmp_path / "store", 0, [0]
    for turn in range(kills):
        with open(path, "ab") as file:
            file.writelines(encoded[turn * each : (turn + 1) * each])
        process = start_cli(tmp_path / "run", incoming, store, "--commit_s=0.01")
        deadline = time.monotonic() + 60
        # Most of a start is imports: wait for the first commit of this process, then for chance.
        file = store / "data.mdb"
        before = file.stat().st_mtime_ns if file.exists() else 0
        while time.monotonic() < deadline and process.poll() is None:
            if file.exists() and file.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.communicate()
        deaths += 1
        opened = LmdbStore(store)
        metadata = opened.metadata()
        offsets.append(json.loads(metadata.get("input:events.jsonl", b'{"offset": 0}'))["offset"])
        opened.close()
    assert deaths == kills and offsets == sorted(offsets)
    assert len(set(offsets)) > kills // 2  # killed while it worked, and work went on
    while offsets[-1] < path.stat().st_size and len(offsets) < kills + 10:
        began = time.time()
        process = start_cli(tmp_path / "run", incoming, store, "--commit_s=0.01")
        changed = 0.0
        while not began < changed < time.time() - 4:  # it has committed, and has no more to do
            time.sleep(0.3)
            if process.poll() is not None or time.time() > began + 120:
                process.kill()
                raise AssertionError(process.communicate()[1].decode())
            changed = (store / "data.mdb").stat().st_mtime
        process.send_signal(signal.SIGTERM)
        _, report = process.communicate(timeout=60)
        assert process.returncode == 0 and b"done:" in report, report
        opened = LmdbStore(store)
        offsets.append(json.loads(opened.metadata()["input:events.jsonl"])["offset"])
        opened.close()

    clean = open_engine(model, MemoryStore())
    run_stream(clean, FileSource(path, {}), print)
    opened = LmdbStore(store)
    got = open_engine(model, opened)
    assert json.loads(opened.metadata()["input:events.jsonl"])["offset"] == path.stat().st_size
    assert dict(opened.items()).keys() == dict(clean.store.items()).keys()
    for user in [f"{block} {u}" for block in range(0, blocks, kills) for u in range(12)]:
        state, wanted = got.get_user(user), clean.get_user(user)
        np.testing.assert_array_equal(state.pending.ids, wanted.pending.ids)
        assert (state.events, state.last_time) == (wanted.events, wanted.last_time)
        np.testing.assert_allclose(state.state.memory, wanted.state.memory, rtol=0, atol=1e-5)
    opened.close()
