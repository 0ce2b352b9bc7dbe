"""Exported vectors and addends give the model's scores, also by a flat index of faiss."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream import all_users
from rec2pm_jax.stream.all_users import users_of_dataset, users_of_store
from rec2pm_jax.stream.compute.vectors import nearest_items
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.export import vectors
from rec2pm_jax.stream.export.vectors import VectorOptions, write_vectors
from rec2pm_jax.stream.lines.events import parse_event
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.data import prepare_log, random_log
from tests.helpers.stores import contents
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events, save_run

ROOT = Path(__file__).parents[2]
TIMED = ("rec2pm", "append", "hstu", "position_time", 2)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Few users at a time: several groups, and batches of few sizes to compile."""
    monkeypatch.setattr(all_users, "GROUP", 2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def serving(dataset, *case) -> Recommender:
    """Return a model with random parameters that knows the users of the dataset."""
    return dataclasses.replace(make_recommender(dataset, make_config(*case)), dataset=dataset)


def read(directory):
    """Return the manifest, and the tables with all vectors as columns."""
    manifest = json.loads((directory / "manifest.json").read_text())
    tables = {
        name: pl.read_parquet(directory / f"{name}*.parquet")
        for name in ("items", "users", "own_items")
    }
    if manifest["format"] == "npy":

        def array(name):
            return np.concatenate([np.load(p) for p in sorted(directory.glob(f"{name}*.npy"))])

        columns = {"vector": array("user_vectors")}
        if manifest["memory_shape"]:
            columns["memory"] = array("memory")
        tables["items"] = tables["items"].with_columns(vector=array("item_vectors"))
        tables["users"] = tables["users"].with_columns(**columns)
    return manifest, tables


def scores_of(tables, user):
    """Return {item: score} of a user, by the rule of the manifest."""
    items = tables["items"]
    query = tables["users"].filter(user=user)["vector"].to_numpy()[0]
    scores = dict(zip(items["item"], items["vector"].to_numpy() @ query, strict=True))
    own = tables["own_items"].filter(user=user)
    assert own["item"].is_unique().all()
    for item, addend in zip(own["item"], own["addend"], strict=True):
        scores[item] += addend
    return scores


def check_scores(tables, user, expected):
    scores = scores_of(tables, user)
    assert set(scores) == {r.item for r in expected}
    np.testing.assert_allclose(
        [scores[r.item] for r in expected], [r.score for r in expected], rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    "case",
    [
        (),
        TIMED,
        pytest.param(("recent", "overwrite", "sasrec", "none", 0, True), marks=pytest.mark.slow),
        pytest.param(("kv_mask", "append"), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("format", vectors.FORMATS)
def test_products_and_addends_are_the_models_scores(case, format, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "USERS_PER_PART", 5)
    model = serving(dataset, *case)
    time = dataset.time_origin + 400_000 if model.catalogue.uses_times else None
    returned = write_vectors(
        users_of_dataset(model), tmp_path / "out", VectorOptions(format, time, {"step": 7})
    )
    manifest, tables = read(tmp_path / "out")
    assert manifest == json.loads(json.dumps(returned))
    names = [dataset.user(i) for i in range(dataset.num_users)]
    assert sorted(tables["users"]["user"]) == sorted(names)
    assert tables["items"]["item"].to_list() == dataset.items.raw_ids[1:]
    assert tables["items"]["row"].to_list() == list(range(dataset.num_items))
    own_counts = tables["own_items"]["user"].value_counts()["count"]
    described = {
        "metric": "inner product",
        "dimension": 8,
        "request_time": time,
        "checkpoint": {"step": 7},
        "data_hash": dataset.content_hash,
        "items": dataset.num_items,
        "users": len(names),
        "users_without_events": 0,
        "own_items": tables["own_items"].height,
        "most_own_items": own_counts.max(),
        "parts": 2,  # of 6 users
    }
    assert described.items() <= manifest.items()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *manifest["files"],
        "manifest.json",
    }
    for name in names:
        user = model.user(name)
        had = {dataset.items.raw_ids[i] for i in dataset.sequence(dataset.user_index(name)).ids}
        assert set(tables["own_items"].filter(user=name)["item"]) <= had
        check_scores(tables, name, model.recommend(user, dataset.num_items, time=time))
        row = tables["users"].filter(user=name)
        assert row.select("events", "updates").row(0) == (user.events, user.state.segments)
        if manifest["memory_shape"]:
            memory = np.asarray(user.state.memory, np.float32)
            assert list(memory.shape) == manifest["memory_shape"]
            np.testing.assert_allclose(row["memory"].to_numpy()[0], memory, atol=1e-5)
    assert ("memory" in tables["users"].columns) == (case[:1] != ("recent",))


def test_a_model_without_own_items_writes_an_empty_table(dataset, tmp_path):
    config = make_config("full")
    model = dataclasses.replace(config.model, repeat_head=False)
    method = dataclasses.replace(config.method, exact_entries=0)
    plain = make_recommender(dataset, dataclasses.replace(config, model=model, method=method))
    plain = dataclasses.replace(plain, dataset=dataset)
    names = [dataset.user(0), dataset.user(1)]
    manifest = write_vectors(users_of_dataset(plain, names=names), tmp_path / "out")
    assert (manifest["own_items"], manifest["most_own_items"]) == (0, 0)
    _, tables = read(tmp_path / "out")
    assert tables["own_items"].schema == {
        "user": pl.String,
        "item": pl.String,
        "addend": pl.Float32,
    }
    for name in names:
        check_scores(tables, name, plain.recommend(plain.user(name), dataset.num_items))


def test_users_of_a_store_are_those_that_a_stream_answers(dataset, tmp_path):
    """Also if a segment is still pending, and with expired users."""
    model = make_recommender(dataset, make_config(*TIMED))
    store = MemoryStore()
    engine = Engine(model, store, EngineOptions(memory="int8", lifetime_s=100), now=lambda: 50.0)
    engine.options = engine.options._replace(max_ahead_s=float("inf"))
    for index in range(dataset.num_users):
        name = dataset.user(index)
        engine.apply([parse_event(event, name) for event in raw_events(dataset, index)])
        if index == 5:
            engine.update_queue.finish_all()
    engine.commit_writer.flush({}, 50.0)
    form = engine.record_format
    stored = {name: form.decode(name, record) for name, record in store.items()}
    longest = engine.recommender.method.read_length
    assert any(len(user.pending) > longest for user in stored.values())  # a whole segment

    held, time = contents(store), dataset.time_origin + 400_000
    options = VectorOptions(time=time)
    manifest = write_vectors(users_of_store(model, store, now=60.0), tmp_path / "out", options)
    assert contents(store) == held
    assert (manifest["users"], manifest["memory_format"]) == (dataset.num_users, "int8")
    _, tables = read(tmp_path / "out")
    for name in stored:
        expected = engine.recommend(name, dataset.num_items, time=time).items
        check_scores(tables, name, expected)

    with pytest.raises(UserError, match="No user has events"):
        write_vectors(users_of_store(model, store, now=200.0), tmp_path / "expired", options)
    engine = Engine(model, store, EngineOptions(memory="int8"), now=lambda: 200.0)
    name = dataset.user(3)
    engine.options = engine.options._replace(max_ahead_s=float("inf"))
    engine.ingest([parse_event(raw_events(dataset, 3, 1)[0], name)])
    engine.commit_writer.flush({}, 200.0)
    manifest = write_vectors(users_of_store(model, store, now=200.0), tmp_path / "one", options)
    counts = (manifest["users"], manifest["users_without_events"])
    assert counts == (1, dataset.num_users - 1)


def test_a_store_of_another_model_or_of_nothing_is_refused(dataset):
    model = make_recommender(dataset, make_config())
    store = MemoryStore()
    with pytest.raises(UserError, match="--store holds no users"):
        users_of_store(model, store)
    assert not store.metadata()
    Engine(model, store, EngineOptions())
    other = make_recommender(dataset, make_config("recent"))
    with pytest.raises(UserError, match="model"):
        users_of_store(other, store)
    store.put({}, {"rebuilt_from": b"hash"})
    with pytest.raises(UserError, match="has not finished"):
        users_of_store(model, store)
    with pytest.raises(UserError, match="has no dataset"):
        users_of_dataset(model)


def test_named_users_of_a_dataset(dataset):
    model = serving(dataset)
    names = [dataset.user(5), dataset.user(2)]
    users = users_of_dataset(model, names=[*names, names[0]])
    found = [pair for group in users.groups for pair in group]
    assert users.total == 2 and sorted(name for name, _ in found) == sorted(names)
    for name, user in found:
        assert user.events == dataset.lengths[dataset.user_index(name)]
    with pytest.raises(UserError, match="User 'nobody' is not in"):
        users_of_dataset(model, names="nobody")


def test_nothing_is_overwritten_or_left_half_written(dataset, tmp_path, monkeypatch):
    model = serving(dataset)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there already"):
        write_vectors(users_of_dataset(model), tmp_path / "out")
    (tmp_path / "out").rmdir()
    with pytest.raises(UserError, match="reads no times"):
        write_vectors(users_of_dataset(model), tmp_path / "out", VectorOptions(time=5))
    with pytest.raises(UserError, match='"time" must be'):
        write_vectors(users_of_dataset(model), tmp_path / "out", VectorOptions(time="noon"))
    with pytest.raises(UserError, match="parquet, npy"):
        write_vectors(users_of_dataset(model), tmp_path / "out", VectorOptions("csv"))
    bad = dataclasses.replace(model, params=jax.tree.map(lambda x: x * np.nan, model.params))
    with pytest.raises(UserError, match="NaN"):
        write_vectors(users_of_dataset(bad), tmp_path / "out")

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vectors, "write_parquet", full_disk)
    with pytest.raises(UserError, match="out: no room left on its disk"):
        write_vectors(users_of_dataset(model), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nearest_items_have_the_highest_cosines(dataset):
    model = serving(dataset)
    table = np.asarray(model.method.network.table(model.params), np.float64)[1:]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    for raw in ("i0", "i7"):
        row = dataset.items.id_of(raw) - 1
        cosines = unit @ unit[row]
        order = [i for i in np.argsort(-cosines, kind="stable") if i != row]
        found = nearest_items(model, raw, k=5)
        assert [r.item for r in found] == [dataset.items.raw_ids[i + 1] for i in order[:5]]
        np.testing.assert_allclose([r.score for r in found], cosines[order[:5]], atol=1e-5)
    with pytest.raises(UserError, match="item 'i77' is not in the training data. Did you mean"):
        nearest_items(model, "i77")
    with pytest.raises(UserError, match="there are 29 other items"):
        nearest_items(model, "i7", k=30)


@pytest.mark.parametrize(
    ("users", "k"), [(12, 10), pytest.param(1000, 100, marks=pytest.mark.slow)], ids=str
)
def test_a_flat_index_of_faiss_finds_the_exact_best_items(users, k, dataset, tmp_path, monkeypatch):
    """The index of the example, merged with the addends, finds what `Recommender` recommends."""
    pytest.importorskip("faiss", reason="needs pip install 'rec2pm_jax[examples]'")
    if users > dataset.num_users:
        monkeypatch.setattr(all_users, "GROUP", 256)
        prepare_log(random_log(users + 40, items=300, events=40 * users, seed=1), tmp_path)
        dataset = open_dataset(tmp_path / "data")
    model = serving(dataset)
    write_vectors(users_of_dataset(model), tmp_path / "out")
    example = runpy.run_path(str(ROOT / "examples/search_vectors.py"))
    names = [dataset.user(i) for i in range(users)]
    answers = example["search"](example["load"](tmp_path / "out"), names, k)
    for name, found in zip(names, answers, strict=True):
        expected = model.recommend(model.user(name), k)
        scores = {r.item: r.score for r in expected}
        np.testing.assert_allclose(
            [score for _, score in found], list(scores.values()), rtol=1e-5, atol=1e-4
        )
        # Scores closer than rounding may swap, also with one that is not among the best.
        last = expected[-1].score
        swapped = {item: score for item, score in found if item not in scores}
        assert all(abs(score - last) < 1e-4 for score in swapped.values())


@pytest.mark.slow
def test_command_writes_a_directory_and_prints_neighbours(dataset, tmp_path):
    save_run(tmp_path / "run", dataset, make_config())
    command = [sys.executable, "-m", "launch.vectors", f"--workdir={tmp_path / 'run'}"]

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True
        )

    output = f"--output={tmp_path / 'out'}"
    done = run(output, "--nearest=i7", "--k=3")
    assert done.returncode == 0, done.stderr
    assert f"{dataset.num_items} items, {dataset.num_users} users" in done.stdout
    near = [line.split()[1] for line in done.stdout.splitlines() if line.startswith((" ", "-"))]
    assert near == [r.item for r in nearest_items(serving(dataset), "i7", k=3)]
    manifest, tables = read(tmp_path / "out")
    assert manifest["checkpoint"] == {"name": "best", "step": 1}
    assert tables["users"].height == dataset.num_users
    for arguments, message in (
        ((), "There is nothing to do"),
        ((output,), "is there already"),
        ((f"--output={tmp_path / 'x'}", "--store=users", "--memory=int8"), "has its own format"),
        ((f"--output={tmp_path / 'x'}", f"--store={tmp_path}"), "there is no store"),
    ):
        refused = run(*arguments)
        assert refused.returncode == 1 and message in refused.stderr, refused.stderr
