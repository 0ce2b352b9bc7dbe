"""The public Python API: prepare, train, evaluate, load, observe, recommend."""

from __future__ import annotations

import datetime
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import rec2pm_jax
from rec2pm_jax import api
from rec2pm_jax.errors import UserError
from rec2pm_jax.presets import presets
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.latency import measure
from rec2pm_jax.stream.lines.events import Event
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.data import make_dataset, random_log
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events, save_run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config())


@pytest.mark.smoke
def test_from_a_frame_to_recommendations(tmp_path):
    """A frame is prepared, trained on, evaluated and served; a workdir is as good as its model."""
    events = random_log(users=12, items=9, events=600)
    dataset = api.prepare(events, tmp_path / "data")
    changes = {
        "data.segment": 4,
        "data.segments": 2,
        "model.dim": 8,
        "train.steps": 2,
        "train.batch_size": 4,
        "train.eval_every": 2,
    }
    config = rec2pm_jax.load_preset("base", changes)
    model = api.train(config, dataset, tmp_path / "run")
    evaluation = api.evaluate(model, dataset, split="validation")
    assert 0 < evaluation.metrics["ndcg@10"] <= 1
    again = api.evaluate(tmp_path / "run", split="validation")
    assert again.metrics == evaluation.metrics
    some = [{"item": e["item"], "time": 1000} for e in events[:9].iter_rows(named=True)]
    user = model.observe(model.new_user(), some)  # a log with times makes a model that needs them
    answer = model.recommend(user, k=3)
    assert rec2pm_jax.load(tmp_path / "run").recommend(user, k=3) == answer
    with pytest.raises(UserError, match="needs its dataset"):
        api.evaluate(model)


def test_any_frame_or_file_of_one_log_is_one_dataset(tmp_path):
    pandas = pytest.importorskip("pandas", reason="needs pip install 'rec2pm_jax[examples]'")
    log = random_log().with_columns(timestamp=pl.from_epoch("timestamp"))
    columns = {name: log[name].to_list() for name in log.columns}
    log.write_parquet(tmp_path / "log.parquet")
    frames = {
        "polars": log,
        "dict": columns,
        "pandas": pandas.DataFrame(columns),
        "file": tmp_path / "log.parquet",
    }
    hashes = {
        name: api.prepare(frame, tmp_path / name, type_column="kind").content_hash
        for name, frame in frames.items()
    }
    assert len(set(hashes.values())) == 1, hashes


def test_prepare_names_what_it_does_not_know(tmp_path):
    events = {"user": ["a"], "item": ["b"], "time": [1]}
    with pytest.raises(UserError, match='no option user_colum. Did you mean "user_column"'):
        api.prepare(events, tmp_path / "data", user_colum="user")
    for frame in (events, pl.DataFrame(events)):
        with pytest.raises(
            UserError, match="no column 'timestamp'; its columns are user, item, time"
        ):
            api.prepare(frame, tmp_path / "data")


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("developmnt", {}, 'no such preset or file. Did you mean "development"'),
        ("base", {"train.step": 3}, 'Unknown config field train.step. Did you mean "steps"'),
        ("base", {"steps": 3}, "Unknown config field steps"),
        ("base", {"train.steps": "3"}, "config.train.steps must be int"),
    ],
)
def test_load_preset_names_what_it_does_not_know(preset, changes, message):
    with pytest.raises(UserError, match=message):
        rec2pm_jax.load_preset(preset, changes)


def test_presets_are_found_by_name_and_by_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = rec2pm_jax.load_preset("synthetic")
    assert rec2pm_jax.load_preset("launch/configs/synthetic.py") == by_name
    (tmp_path / "mine.py").write_text(presets()["synthetic"].read_text())
    assert rec2pm_jax.load_preset("mine.py") == by_name
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="empty.py defines no get_config"):
        rec2pm_jax.load_preset(tmp_path / "empty.py")


def test_load_recommends_as_the_saved_parameters(dataset, model, tmp_path, caplog):
    save_run(tmp_path, dataset, make_config())
    with caplog.at_level("WARNING"):
        loaded = rec2pm_jax.load(tmp_path)
    assert not caplog.records
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
    assert [counts[r.item] for r in popular] == sorted(counts.values(), reverse=True)[:8]
    assert {r.score for r in popular} == {None}  # a count is no score


@pytest.mark.parametrize("bias", ["none", "position_time"])
def test_users_of_the_dataset_are_known_after_training(dataset, tmp_path, bias):
    save_run(tmp_path, dataset, make_config(backbone="hstu", bias=bias))
    model = rec2pm_jax.load(tmp_path)
    engine = Engine(model, MemoryStore(), EngineOptions(known_users=True))
    for index in (0, 5):
        name = dataset.user(index)
        expected = model.observe(model.new_user(), raw_events(dataset, index))
        user = model.user(name)
        assert (user.events, user.last_time) == (expected.events, expected.last_time)
        assert model.recommend(user, 5) == model.recommend(expected, 5)
        answer = engine.recommend(name, 5)
        assert (answer.events, answer.popular) == (expected.events, False)
        assert answer.updates == model.count_updates(expected)
        assert [r.item for r in answer.items] == [r.item for r in model.recommend(expected, 5)]
        more = [{"item": "i1", "time": expected.last_time + 5}] * 6
        assert engine.ingest([Event(name, **e) for e in more]).events == 6
        later = model.recommend(model.observe(user, more), 5)
        assert [r.item for r in engine.recommend(name, 5).items] == [r.item for r in later]
    stranger = engine.recommend("stranger", 5)
    assert stranger.popular and stranger.events == 0
    assert Engine(model, MemoryStore()).recommend(dataset.user(0), 5).popular
    with pytest.raises(UserError, match=r"user 'stranger' is not in the dataset; new_user\(\)"):
        model.user("stranger")


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
    assert len(model.recommend(user, dataset.num_items, exclude=out)) == dataset.num_items - 4
    with pytest.raises(UserError, match=f"k={dataset.num_items + 1}, .* the {dataset.num_items}"):
        model.recommend(user, dataset.num_items + 1)


@pytest.mark.parametrize("k", [0, -1, 31])
def test_k_must_fit_the_catalogue(model, k):
    with pytest.raises(UserError, match=f"k={k}, but it must be between 1 and the 30 items"):
        model.recommend(model.new_user(), k)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (["i1", "i222"], r'event 1: item \'i222\' is not in the training data.* mean "i22"\?'),
        ([{"time": 3}], 'event 0: "item" is missing'),
        ([{"item": "i1", "time": "noon"}], "seconds since 1970 or ISO 8601 text"),
        ([{"item": "i1", "time": -1}], "negative timestamp"),
        ([{"item": "i1", "time": 1600000000000}], "beyond the year 5000; is it in another unit"),
        ([{"item": "i1", "time": 9}, {"item": "i1", "time": 8}], "time 8 lies before 9"),
        ([3.5], "string or integer, got 3.5"),
    ],
)
def test_observe_names_the_event_at_fault(model, events, message):
    with pytest.raises(UserError, match=message):
        model.observe(model.new_user(), events)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A model over items with digits as ids: "4", "2" and "42" among them."""
    directory = tmp_path_factory.mktemp("numbered")
    log = random_log(users=12, items=50, events=2000, seed=3)
    log = log.with_columns(item=pl.col("item").str.slice(1))
    dataset = api.prepare(log, directory / "data", type_column="kind")
    assert {"4", "2", "42"} < set(dataset.items.raw_ids)
    return make_recommender(dataset, make_config())


def test_a_string_or_number_is_one_id(numbered):
    for one in ("42", 42, np.int64(42), 42.0, {"item": "42"}, ["42"], (x for x in [np.int32(42)])):
        user = numbered.observe(numbered.new_user(), one)
        assert user.events == 1
        assert user.pending.ids.tolist() == [numbered.catalogue.items.id_of("42")]
    everything = numbered.catalogue.num_items
    for out in ("42", 42, np.int64(42), ["42"], np.array([42]), {42}):
        answer = numbered.recommend(user, everything - 1, exclude=out)
        assert numbered.known_items - {r.item for r in answer} == {"42"}
    for out in ([True], [None], 4.5, [[4]]):
        with pytest.raises(UserError, match='"exclude" must hold'):
            numbered.recommend(user, 3, exclude=out)
    with pytest.raises(UserError, match='"exclude" must be a list'):
        numbered.recommend(user, 3, exclude=object())


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8])
def test_any_integral_number_is_a_k(numbered, kind):
    user = numbered.observe(numbered.new_user(), ["4", "2"])
    assert numbered.recommend(user, kind(5)) == numbered.recommend(user, 5)
    engine = Engine(numbered, MemoryStore())
    engine.ingest([Event("7", "4"), Event("7", "2")])
    assert len(engine.recommend(kind(7), kind(5), exclude=kind(4)).items) == 5
    for k in (2.5, True, "5", None):
        with pytest.raises(UserError, match='"k" must be a whole number'):
            numbered.recommend(user, k)


def test_times_are_read_as_prepare_reads_them(dataset):
    model = make_recommender(dataset, make_config(backbone="hstu", bias="position_time"))
    noon, moment = 1717156800, datetime.datetime(2024, 5, 31, 12, tzinfo=datetime.UTC)
    users = [
        model.observe(model.new_user(), [{"item": "i1", "time": time}])
        for time in (noon, float(noon), noon + 0.25, str(noon), np.int64(noon), moment)
        + ("2024-05-31T12:00:00Z", "2024-05-31 14:00+02:00", "2024-05-31 12:00:00")
    ]
    assert {(int(u.pending.times[0]), u.last_time) for u in users} == {
        (noon - dataset.time_origin, noon)
    }
    later = [model.recommend(users[0], 5, time=t) for t in (noon + 60, "2024-05-31T12:01:00")]
    assert later[0] == later[1]


def test_unknown_items_can_be_skipped(model):
    history = ["i1", "nothing", {"item": "i2"}, {"item": "none", "time": 7}, "i3"]
    user, skipped = model.observe(model.new_user(), history, skip_unknown=True)
    assert skipped == ["nothing", {"item": "none", "time": 7}]
    clean = model.observe(model.new_user(), ["i1", "i2", "i3"])
    assert user.events == 3 and model.recommend(user, 4) == model.recommend(clean, 4)
    assert model.observe(clean, ["nothing"], skip_unknown=True) == (clean, ["nothing"])
    with pytest.raises(UserError, match=r"event 1: item 'nothing' .* skip_unknown=True"):
        model.observe(model.new_user(), history)
    with pytest.raises(UserError, match='"item" is missing'):
        model.observe(model.new_user(), [{"time": 3}], skip_unknown=True)
    assert "i1" in model.known_items and "nothing" not in model.known_items
    assert list(model.known_items) == model.catalogue.items.raw_ids[1:]


def test_models_with_times_and_types_ask_for_them(dataset):
    config = make_config(backbone="hstu", bias="position_time", types=2)
    model = make_recommender(dataset, config)
    complete = raw_events(dataset, 0, 1)[0]
    assert model.observe(model.new_user(), [complete]).events == 1
    for changes, message in [
        ({"time": None}, '"time" is missing'),
        ({"type": None}, '"type" is missing'),
        ({"type": "vieww"}, "event type 'vieww' is unknown; known are buy, view"),
        ({"time": 2**35}, "68 years"),
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


@pytest.mark.parametrize("name", ["kv_mask", "recent", "full"])
def test_latency_of_one_user(dataset, name):
    model = make_recommender(dataset, make_config(name))
    result = measure(model.method, model.params, repetitions=3)
    assert result["read_ms"] > 0
    assert (result["update_ms"] is None) == (name == "full")
