"""`launch.recommend`: rows are those of `Recommender.recommend`, and a stopped call resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import numpy as np
import polars as pl
import pytest

from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.bulk.files import OutputFolder, building_folder
from rec2pm_jax.stream.bulk.flag_values import filters_of_flags
from rec2pm_jax.stream.bulk.run import BulkOptions, describe, recommend_all
from rec2pm_jax.stream.bulk.users import DatasetUsers, StoreUsers, UserList, read_user_list
from rec2pm_jax.stream.lines.requests import NO_FILTERS
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.plan import plan_search
from rec2pm_jax.stream.rebuild import rebuild
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import MemoryStore
from rec2pm_jax.stream.users.pending import PendingEvents
from tests.helpers.stream import make_config, make_data, make_recommender, save_run

K = 6
SMALL = BulkOptions(batch_size=4, users_per_file=5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("bulk"))


@pytest.fixture(scope="module")
def model(dataset) -> Recommender:
    tiny = make_recommender(dataset, make_config(times=True))
    return Recommender(tiny.method, tiny.params, tiny.catalogue, dataset=dataset)


def read_rows(folder) -> list[tuple]:
    files = sorted(folder.glob("part-*"))
    read = pl.read_parquet if files[0].suffix == ".parquet" else pl.read_ndjson
    return [row for file in files for row in read(file).rows()]


def run(model, source, folder, *, names=None, filters=NO_FILTERS, options=SMALL, time=None):
    search = plan_search(model.catalogue, K, (), filters, time)
    names = source.names if names is None else names
    return recommend_all(source, names, search, time, folder, {}, options)


def expected_rows(model, names, filters=NO_FILTERS, time=None) -> list[tuple]:
    """One request of `Recommender.recommend` after the other."""
    rows = []
    for name in names:
        known = model.dataset.user_index(name) is not None
        user = model.user(name) if known else model.new_user()
        answer = model.recommend(user, K, time=time, filters=filters)
        rows += [(name, rank, *best) for rank, best in enumerate(answer, 1)]
    return rows


def assert_same(found, expected):
    assert [row[:4] for row in found] == [row[:4] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours[4] is None) == (theirs[4] is None)
        assert ours[4] is None or ours[4] == pytest.approx(theirs[4], abs=1e-5)


@pytest.fixture(scope="module")
def store(dataset, model):
    """A rebuilt store that keeps what users have seen."""
    filled = MemoryStore()
    rebuild(model, dataset, filled, EngineOptions(seen="events"))
    return filled


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["dataset", "store"])
@pytest.mark.parametrize("filters", [NO_FILTERS, {"exclude_seen": {"days": 2}}], ids=["all", "new"])
def test_rows_are_those_of_single_requests(dataset, model, store, tmp_path, kind, filters):
    time = dataset.time_origin + 4 * 86_400
    if kind == "dataset":
        source = DatasetUsers(model, one_pass=False, keeps_seen=True)
    else:
        source = StoreUsers(model, store, now=0.0)
    done = run(model, source, tmp_path / "out", filters=filters, time=time)
    assert sorted(source.names) == [dataset.user(i) for i in range(12)]
    assert_same(read_rows(tmp_path / "out"), expected_rows(model, source.names, filters, time))
    assert done["complete"] and done["users"] == 12 and done["popular"] == 0
    assert [row["users"] for row in done["files"].values()] == [5, 5, 2]
    assert done == json.loads((tmp_path / "out/manifest.json").read_text())


def test_unknown_users_get_popular_items_and_short_lists_are_counted(model, tmp_path):
    """As JSON lines; the filter applies to them, too."""
    source = DatasetUsers(model, one_pass=False, keeps_seen=False)
    names = ["u3", "never seen", "u1", "nor this"]
    filters = {"candidates": ["i4", "i9", "i2"]}
    options = SMALL._replace(form="jsonl")
    done = run(model, source, tmp_path / "o", names=names, filters=filters, options=options)
    assert_same(read_rows(tmp_path / "o"), expected_rows(model, names, filters))
    assert (done["popular"], done["fewer"], done["rows"]) == (2, 4, 12)


def test_the_store_misses_updates(dataset, model, store, tmp_path):
    """A record that was committed before its updates is read as one after them."""
    source = StoreUsers(model, store, now=0.0)
    [user] = source.take(["u0"])
    updater = source.updater
    behind = updater.record_format.new_user()
    sequence = dataset.sequence(dataset.user_index("u0"))
    for field in ("events", "last_time", "seen"):
        setattr(behind, field, getattr(user, field))
    gaps = np.diff(sequence.times, prepend=sequence.times[:1])
    behind.pending = PendingEvents.of(np.stack([sequence.ids, gaps], axis=1))
    updater.finish_updates([behind])
    assert (behind.segments, behind.pending) == (user.segments, user.pending)
    assert behind.segments > 0
    np.testing.assert_allclose(
        *(updater.stack_states([u]).memory for u in (behind, user)), atol=1e-5
    )


def test_one_pass_memories_are_those_of_compress(dataset, model):
    source = DatasetUsers(model, one_pass=True, keeps_seen=False)
    by_length = np.argsort(dataset.lengths)
    names = [dataset.user(int(by_length[place])) for place in (0, 6)]
    users = source.take(names)
    states = source.updater.stack_states(users)
    method, size = model.method, model.method.config.data.segment
    for row, name in enumerate(names):
        sequence = dataset.sequence(dataset.user_index(name))
        events = model.catalogue.encode_sequence(sequence, dataset.time_origin)
        count = int(method.plan(len(sequence.ids)).updates) * size
        assert users[row].segments * size == count
        assert count > 0
        archived = jax.tree.map(lambda f, n=count: f[None, :n], events)
        after = events.times[count : count + 1]
        alone = method.compress(model.params, archived, np.ones((1, count), bool), after)
        np.testing.assert_allclose(states.memory[row], alone.memory[0], atol=1e-4)
    recent = make_recommender(dataset, make_config("recent"))
    recent = Recommender(recent.method, recent.params, recent.catalogue, dataset=dataset)
    with pytest.raises(UserError, match="no one-pass compression"):
        DatasetUsers(recent, one_pass=True, keeps_seen=False)


def test_several_devices_write_the_same_rows(model, tmp_path):
    source = DatasetUsers(model, one_pass=False, keeps_seen=True)
    filters = {"exclude_seen": True, "deny": ["i3"]}
    for devices in (1, 2):
        options = SMALL._replace(devices=devices)
        run(model, source, tmp_path / str(devices), filters=filters, options=options)
    assert_same(read_rows(tmp_path / "2"), read_rows(tmp_path / "1"))
    with pytest.raises(UserError, match="--devices=999"):
        run(model, source, tmp_path / "x", options=SMALL._replace(devices=999))


def test_a_stopped_call_resumes_and_never_mixes(model, tmp_path, monkeypatch):
    source = DatasetUsers(model, one_pass=False, keeps_seen=False)
    run(model, source, tmp_path / "whole")
    calls = []
    write = OutputFolder.write

    def stop_at_the_second(self, number, *rest):
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(self, number, *rest)

    monkeypatch.setattr(OutputFolder, "write", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt), building_folder(str(tmp_path / "out")) as folder:
        run(model, source, folder)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="begun with users_hash"):
        run(model, source, folder, names=["u1"])
    with building_folder(str(tmp_path / "out")) as folder:
        run(model, source, folder)
    assert calls == [0, 1, 1, 2]  # the first file is not made again
    assert_same(read_rows(tmp_path / "out"), read_rows(tmp_path / "whole"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
    with pytest.raises(UserError, match="is there already"), building_folder(f"{tmp_path}/out"):
        pass
    with pytest.raises(ValueError), building_folder(f"{tmp_path}/early"):
        raise ValueError
    assert not list(tmp_path.glob("early*"))  # nothing was written


def test_lists_of_users(tmp_path):
    file = tmp_path / "users"
    file.write_text("7\n\n b \n7\n")
    assert read_user_list(str(file), ValueRules()) == UserList(["7", "b"], 1)
    pl.DataFrame({"user": [3, 4]}).write_parquet(tmp_path / "u.parquet")
    assert read_user_list(f"{tmp_path}/u.parquet", ValueRules()).names == ["3", "4"]
    pl.DataFrame({"id": [3]}).write_parquet(tmp_path / "no.parquet")
    for content, message in ((b"\n", "lists no users"), (b"\xff", "cannot be read")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_user_list(str(file), ValueRules())
    for name, message in (("none", "cannot be read"), ("no.parquet", "no column user")):
        with pytest.raises(UserError, match=message):
            read_user_list(f"{tmp_path}/{name}", ValueRules())


def test_filters_of_flags(tmp_path):
    (tmp_path / "ids").write_text("a\nb,c\n")
    (tmp_path / "json").write_text('{"categories": ["x"]}')
    texts = {
        "exclude_seen": '{"days": 3}',
        "candidates": f"@{tmp_path}/ids",
        "allow": f"@{tmp_path}/json",
        "deny": "d, e",
    }
    filters = filters_of_flags(texts, ValueRules())
    assert filters.candidates == ("a", "b,c") and filters.allow.categories == ("x",)
    assert filters.exclude_seen.days == 3 and filters.deny.items == ("d", "e")
    for bad in ({"deny": "{"}, {"deny": "@none"}, {"exclude_seen": "some"}):
        with pytest.raises(UserError):
            filters_of_flags(bad, ValueRules())


def test_a_manifest_names_model_data_and_filters(model):
    said = describe(model, {"step": 5}, NO_FILTERS)
    assert said["step"] == 5 and said["data_hash"] == model.dataset.content_hash
    assert said["filters"]["deny"] == {"items": [], "categories": []}


@pytest.mark.slow
def test_command_line(dataset, model, tmp_path):
    save_run(tmp_path / "run", dataset, make_config(times=True))
    command = [sys.executable, "-m", "launch.recommend", f"--workdir={tmp_path}/run", "--k=6"]

    def call(*flags):
        return subprocess.run([*command, *flags], capture_output=True, text=True, env=os.environ)

    done = call(f"--output={tmp_path}/out", "--exclude_seen=all")
    assert done.returncode == 0, done.stderr
    assert "12 users, 72 rows" in done.stdout
    source = DatasetUsers(model, one_pass=False, keeps_seen=True)
    assert_same(
        read_rows(tmp_path / "out"), expected_rows(model, source.names, {"exclude_seen": True})
    )
    for flags, message in (
        (["--candidates=i1,gone"], "item 'gone' is not in the training data"),
        (["--k=31"], "k=31"),
        (["--store=nowhere"], "there is no store"),
        (["--exclude_seen=some"], '"exclude_seen" must be true'),
    ):
        failed = call(f"--output={tmp_path}/bad", *flags)
        assert failed.returncode == 1 and message in failed.stderr
        assert failed.stderr.strip().count("\n") == 0 or "error:" in failed.stderr
        assert not list(tmp_path.glob("bad*"))
