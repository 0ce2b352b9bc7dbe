"""The public Python API: load, observe, recommend."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import rec2pm_jax
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.latency import measure
from rec2pm_jax.stream.recommender import Recommender
from tests.helpers.data import make_dataset
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events, save_run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config())


def test_importing_the_package_is_light():
    code = "import sys, rec2pm_jax; assert not {'jax', 'numpy', 'orbax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_load_recommends_as_the_saved_parameters(dataset, model, tmp_path):
    save_run(tmp_path, dataset, make_config())
    loaded = rec2pm_jax.load(tmp_path)
    items = [e["item"] for e in raw_events(dataset, 0, 17)]
    answers = [m.recommend(m.observe(m.new_user(), items), k=6) for m in (loaded, model)]
    assert answers[0] == answers[1]
    assert rec2pm_jax.load(str(tmp_path), checkpoint="latest").method == loaded.method


def test_load_refuses_what_it_cannot_serve(dataset, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        rec2pm_jax.load(tmp_path / "nothing")
    save_run(tmp_path / "run", dataset, make_config())
    with pytest.raises(UserError, match="no dataset.json"):
        rec2pm_jax.load(tmp_path / "run", data=tmp_path)
    other = make_dataset(tmp_path, [4, 5])
    with pytest.raises(UserError, match="content hash"):
        rec2pm_jax.load(tmp_path / "run", data=other.path)
    moved = tmp_path / "moved"
    shutil.copytree(dataset.path, moved)
    assert isinstance(rec2pm_jax.load(tmp_path / "run", data=moved), Recommender)


def test_without_events_the_most_popular_items(dataset, model):
    counts = dict(zip(dataset.items.raw_ids, dataset.items.counts.tolist(), strict=True))
    popular = model.recommend(model.new_user(), k=8)
    assert [r.score for r in popular] == sorted(counts.values(), reverse=True)[:8]
    assert all(counts[r.item] == r.score for r in popular)


def test_answers_carry_raw_ids_and_titles(dataset, model):
    item, title, score = model.recommend(model.observe(model.new_user(), ["i1"]), k=1)[0]
    assert item in dataset.items.raw_ids
    assert title == dataset.items.titles[dataset.items.id_of(item)]
    assert math.isfinite(score)


@pytest.mark.parametrize("events", [0, 12])
def test_excluded_items_are_skipped_and_nothing_else_changes(dataset, model, events):
    user = model.observe(model.new_user(), raw_events(dataset, 0, events))
    everything = model.recommend(user, dataset.num_items)
    out = [everything[i].item for i in (0, 2, 3, 9)]
    answer = model.recommend(user, 8, exclude=[*out, out[0], "never heard of"])
    expected = [r for r in everything if r.item not in out][:8]
    assert [r.item for r in answer] == [r.item for r in expected]
    assert len(model.recommend(user, dataset.num_items - 4, exclude=out)) == dataset.num_items - 4
    with pytest.raises(UserError, match=f"k={dataset.num_items - 3}, .* the {len(everything) - 4}"):
        model.recommend(user, dataset.num_items - 3, exclude=out)


@pytest.mark.parametrize("k", [0, -1, 31])
def test_k_must_fit_the_catalogue(model, k):
    with pytest.raises(UserError, match=f"k={k}, but it must be between 1 and the 30 items"):
        model.recommend(model.new_user(), k)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (["i1", "i222"], r'event 1: item \'i222\' is not in the training data.* mean "i22"\?'),
        ([{"time": 3}], 'event 0: "item" is missing'),
        ([{"item": "i1", "time": "noon"}], "whole seconds since 1970"),
        ([{"item": "i1", "time": 9}, {"item": "i1", "time": 8}], "time 8 lies before 9"),
        ([3.5], "string or integer, got 3.5"),
    ],
)
def test_observe_names_the_event_at_fault(model, events, message):
    with pytest.raises(UserError, match=message):
        model.observe(model.new_user(), events)


def test_models_with_times_and_types_ask_for_them(dataset):
    config = make_config(backbone="hstu", bias="position_time", types=2)
    model = make_recommender(dataset, config)
    complete = raw_events(dataset, 0, 1)[0]
    assert model.observe(model.new_user(), [complete]).events == 1
    for changes, message in [
        ({"time": None}, '"time" is missing'),
        ({"type": None}, '"type" is missing'),
        ({"type": "vieww"}, "event type 'vieww' is unknown; known are buy, view"),
        ({"time": 2**40}, "68 years"),
    ]:
        with pytest.raises(UserError, match=message):
            model.observe(model.new_user(), [complete | changes])


def test_no_events_change_nothing(model):
    user = model.observe(model.new_user(), ["i1", "i2"])
    assert model.observe(user, []) is user


def test_diverged_parameters_are_an_error(dataset, model):
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model.params)
    model = Recommender(model.method, broken, model.catalogue)
    with pytest.raises(UserError, match="NaN or infinite"):
        model.recommend(model.observe(model.new_user(), ["i1"]), 3)


@pytest.mark.parametrize("name", ["kv_mask", "recent"])
def test_latency_of_one_user(dataset, name):
    model = make_recommender(dataset, make_config(name))
    result = measure(model.method, model.params, repetitions=3)
    assert result["read_ms"] > 0
    assert (result["update_ms"] is None) == (name == "recent")
