"""A rebuilt store equals that of a stream of the same events, also if it was stopped."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream import rebuild as rebuilding
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import parse_event
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.rebuild import is_rebuilt, open_new_store, rebuild
from rec2pm_jax.stream.stores import base
from rec2pm_jax.stream.stores.base import MemoryStore, open_store
from tests.helpers.stores import contents, read_users
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events, save_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def streamed(recommender, dataset, options) -> MemoryStore:
    """Return the store after a stream of every user's events."""
    store = MemoryStore()
    engine = Engine(recommender, store, options)
    for index in range(dataset.num_users):
        name = dataset.user(index)
        engine.ingest([parse_event(event, name) for event in raw_events(dataset, index)])
    engine.commit_writer.flush({})
    return store


def users_of(store, recommender, options):
    form = Engine(recommender, store, options).record_format
    return read_users(store, form), form


@pytest.mark.parametrize(
    ("case", "memory"),
    [
        (("rec2pm", "overwrite", "sasrec", "none", 0), "int8"),
        (("rec2pm", "append", "hstu", "position_time", 2), "float32"),
        (("full", "overwrite", "sasrec", "none", 2), "float32"),
        (("recent", "overwrite", "sasrec", "none", 0, True), "int8"),
    ],
    ids=str,
)
def test_rebuilt_states_are_streamed_states(case, memory, dataset, monkeypatch):
    monkeypatch.setattr(rebuilding, "USERS_PER_COMMIT", 5)  # three commits
    recommender = make_recommender(dataset, make_config(*case))
    store, seen = MemoryStore(), []
    options = EngineOptions(memory=memory, seen="events")
    done = rebuild(recommender, dataset, store, options, lambda *x: seen.append(x))
    expected, form = users_of(streamed(recommender, dataset, options), recommender, options)
    found, _ = users_of(store, recommender, options)
    assert set(found) == set(expected) and len(found) == dataset.num_users
    for name, user in expected.items():
        ours = found[name]
        for field in ("events", "last_time", "groups", "segments", "pending", "watermark"):
            assert getattr(ours, field) == getattr(user, field), (name, field)
        assert ours.seen.to_bytes() == user.seen.to_bytes()
        assert (ours.memory is None) == (user.memory is None)
        if user.memory:
            bytes_ = (np.frombuffer(x.memory, np.uint8)[None] for x in (ours, user))
            (a, exact), (b, expected_exact) = map(form.states.decode, bytes_)
            np.testing.assert_allclose(a, b, atol=1e-5 if memory == "float32" else 0.03)
            jax.tree.map(np.testing.assert_array_equal, exact, expected_exact)
            assert exact.items.any()
    updates = sum(user.segments for user in expected.values())
    seen_bytes = sum(user.seen.nbytes for user in expected.values())
    assert done == (dataset.num_users, dataset.lengths.sum(), updates, 0, 0, seen_bytes)
    assert seen[-1] == (updates, updates) and seen == sorted(seen)


class Stopped(Exception):
    pass


def test_a_stopped_rebuild_resumes_and_never_mixes(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuilding, "USERS_PER_COMMIT", 5)
    recommender = make_recommender(dataset, make_config())
    whole = MemoryStore()
    rebuild(recommender, dataset, whole, EngineOptions(memory="int8"))

    store = MemoryStore()
    put = store.put

    def stop_at_second_commit(records, *more):
        if records and dict(store.items()):
            raise Stopped
        put(records, *more)

    monkeypatch.setattr(store, "put", stop_at_second_commit)
    with pytest.raises(Stopped):
        rebuild(recommender, dataset, store, EngineOptions(memory="int8"))
    assert len(dict(store.items())) == 5
    monkeypatch.setattr(store, "put", put)
    done = rebuild(recommender, dataset, store, EngineOptions(memory="int8"))
    assert done.found == 5 and done.users == dataset.num_users
    assert contents(store) == contents(whole)
    store.delete([dataset.user(0)])  # a user deleted after that is not added again
    assert (
        rebuild(recommender, dataset, store, EngineOptions(memory="int8")).found
        == dataset.num_users
    )
    assert len(dict(store.items())) == dataset.num_users - 1

    # Another format, another model, other data, the store of a stream.
    with pytest.raises(UserError, match="memory 'int8', not 'float32'"):
        rebuild(recommender, dataset, store, EngineOptions(memory="float32"))
    other = make_recommender(dataset, make_config(memory="append"))
    with pytest.raises(UserError, match="model"):
        rebuild(other, dataset, store, EngineOptions(memory="int8"))
    grown = make_data(tmp_path)
    grown.info["content_hash"] = "other"
    with pytest.raises(UserError, match="begun from data"):
        rebuild(recommender, grown, store, EngineOptions(memory="int8"))
    with pytest.raises(UserError, match="that a stream left"):
        rebuild(
            recommender,
            dataset,
            streamed(recommender, dataset, EngineOptions(memory="int8")),
            EngineOptions(memory="int8"),
        )


def test_a_rebuild_and_other_writers_refuse_each_other(tmp_path, monkeypatch):
    address, building = str(tmp_path / "store"), str(tmp_path / "store.building")
    rename, seen = os.rename, []

    def rename_while_locked(old, new):
        with pytest.raises(UserError, match="in use by another process"):
            open_store(building)
        seen.append(new)
        rename(old, new)

    monkeypatch.setattr(os, "rename", rename_while_locked)
    with open_new_store(address) as store:
        with pytest.raises(UserError, match="store.building is in use by another process"):
            open_new_store(address).__enter__()
        store.put({"u": b"1"}, {"rebuilt_from": b"hash"})
        with pytest.raises(UserError, match="has not finished"):
            is_rebuilt(store)
        store.put({}, {"rebuilt": b"1"})
        assert is_rebuilt(store)
    assert seen == [address] and not Path(building).exists()
    with contextlib.closing(open_store(address)) as store:
        assert dict(store.items()) == {"u": b"1"}
    with pytest.raises(UserError, match="is there already"):
        open_new_store(address).__enter__()


def test_a_rebuild_replaces_no_store_that_was_made_meanwhile(tmp_path):
    address = str(tmp_path / "store")
    with contextlib.ExitStack() as stack:
        with pytest.raises(UserError, match="Cannot rename .* The rebuilt store is complete"):
            with open_new_store(address) as store:
                store.put({"u": b"rebuilt"}, {})
                streamed = stack.enter_context(contextlib.closing(open_store(address)))
                streamed.put({"u": b"streamed"}, {})
        assert streamed.get(["u"]) == [b"streamed"]
    with contextlib.closing(open_store(f"{address}.building")) as store:
        assert store.get(["u"]) == [b"rebuilt"]


def test_ids_too_long_for_a_store_are_left_out(dataset, monkeypatch):
    recommender = make_recommender(dataset, make_config())
    longest = max(len(dataset.user(i).encode()) for i in range(dataset.num_users))
    monkeypatch.setattr(base, "MAX_USER_BYTES", longest - 1)
    store = MemoryStore()
    done = rebuild(recommender, dataset, store, EngineOptions(memory="int8"))
    assert done.left_out > 0 and done.users + done.left_out == dataset.num_users
    assert len(dict(store.items())) == done.users


@pytest.mark.slow
def test_command_writes_a_store_under_its_name_when_it_is_complete(dataset, tmp_path):
    config = make_config()
    save_run(tmp_path / "run", dataset, config)
    command = [sys.executable, "-m", "launch.rebuild_memory", f"--workdir={tmp_path / 'run'}"]
    command += [f"--data={dataset.path}", f"--output={tmp_path / 'store'}", "--memory=int8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run():
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    assert f"{dataset.num_users} users, {dataset.lengths.sum()} events" in done.stdout
    assert not (tmp_path / "store.building").exists()
    store = open_store(str(tmp_path / "store"))
    recommender = make_recommender(dataset, config)
    found, _ = users_of(store, recommender, EngineOptions(memory="int8"))
    store.close()
    assert {name: user.events for name, user in found.items()} == {
        dataset.user(i): dataset.lengths[i] for i in range(dataset.num_users)
    }
    again = run()
    assert again.returncode == 1 and "is there already" in again.stderr
