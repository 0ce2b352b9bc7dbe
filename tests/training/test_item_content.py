"""Training with content: steps, checkpoints, items that came later, and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import polars as pl
import pytest

from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append
from rec2pm_jax.data.splits import bound_rule, count_training_events
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import config_hash, make_method, run_identity
from rec2pm_jax.nn.item_features import add_content
from rec2pm_jax.training.checkpoint import load_for_inference
from rec2pm_jax.training.item_content import training_content
from rec2pm_jax.training.loop import train_and_evaluate
from rec2pm_jax.training.partition import make_partition
from rec2pm_jax.training.trained_run import load_run
from tests.helpers.data import prepare_log

ITEMS = 12  # of the log; item i11 is a test target only, and "new" has no event


def config_of(steps: int = 2, features: int = 32, **compute):
    return from_dict(
        {
            "data": {"segment": 3, "segments": 2, "protocol": "leave_one_out"},
            "method": {"name": "recent"},
            "model": {"dim": 8, "layers": 1, "heads": 1, "item_features": features},
            "optim": {"schedule": "constant", "warmup_steps": 1},
            "train": {"steps": steps, "batch_size": 4, "eval_every": 2, "log_every": 1}
            | {"checkpoint_every": 2},
            "compute": compute,
        }
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("content")
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{i}", 1000 + n)
        for u in range(8)
        for n, i in enumerate([*rng.integers(0, ITEMS - 1, 9), ITEMS - 1])
    ]
    log = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    names = [*(f"i{i}" for i in range(ITEMS)), "new"]
    items = pl.DataFrame(
        {
            "id": names,
            "category": [f"c{n % 3}" for n in range(len(names))],
            "vector": rng.normal(size=(len(names), 5)).tolist(),
        }
    )
    items.write_parquet(path / "items.parquet")
    prepare_log(log, path, items=str(path / "items.parquet"))
    dataset = open_dataset(path / "data")
    config = config_of()
    method = make_method(config, dataset.num_items)
    train_and_evaluate(config, dataset, method, path / "run")
    return path


def test_training_events_are_counted(directory):
    dataset = open_dataset(directory / "data")
    rule = bound_rule(config_of().data, dataset)
    counts = np.zeros(dataset.num_items + 1, int)
    for user, end in enumerate(rule.train_ends(dataset.lengths)):
        for item in dataset.sequence(user).ids[:end]:
            counts[item] += 1
    np.testing.assert_array_equal(count_training_events(dataset, rule), counts)
    trained = training_content(config_of(), dataset).trained
    np.testing.assert_array_equal(trained, counts > 0)
    assert not trained[dataset.items.id_of("new")] and not trained[dataset.items.id_of("i11")]


def test_a_run_serves_rows_and_content(directory):
    """Rows of items without training events stay 0 bit for bit, weight decay included."""
    dataset = open_dataset(directory / "data")
    _, params, meta = load_for_inference(directory / "run")
    assert meta["item_vector_length"] == 5
    rows = np.asarray(params["embedding"]["item_embedding"])
    for name in ("new", "i11"):
        assert not rows[dataset.items.id_of(name)].any()
    run = load_run(directory / "run")
    content = training_content(config_of(), dataset)
    expected = add_content(params, content)["embedding"]["item_embedding"]
    served = run.params["embedding"]["item_embedding"]
    np.testing.assert_array_equal(served[1:], expected[1:])
    assert np.asarray(served)[dataset.items.id_of("new")].any()


@pytest.mark.slow
def test_training_resumes_and_items_may_come(directory, tmp_path):
    dataset = open_dataset(directory / "data")
    config = config_of(steps=4)
    train_and_evaluate(
        config, dataset, make_method(config, dataset.num_items), directory / "run", None
    )
    log = pl.DataFrame({"user": ["u1"], "item": ["later"], "timestamp": [5000]})
    log.write_parquet(tmp_path / "later.parquet")
    pl.DataFrame({"id": ["later", "last"], "category": ["c1", "c2"]}).write_csv(tmp_path / "i.csv")
    append(
        PrepareOptions(
            "",
            str(directory / "data"),
            str(tmp_path / "later.parquet"),
            items=str(tmp_path / "i.csv"),
            progress=False,
        )
    )
    run = load_run(directory / "run")
    assert run.dataset.items.raw_ids[-2:] == ["later", "last"]
    later, last = np.asarray(run.params["embedding"]["item_embedding"])[-2:]
    assert later.any() and last.any() and not np.allclose(later, last)
    config = config_of(steps=6)
    method = make_method(config, run.dataset.num_items)
    summary = train_and_evaluate(config, run.dataset, method, directory / "run")
    assert summary["steps"] == 6


@pytest.mark.slow
def test_micro_batches_and_devices_change_nothing(directory):
    """Which rows are left out depends on the step alone."""
    dataset = open_dataset(directory / "data")
    batch = {
        "ids": np.random.default_rng(1).integers(1, ITEMS, (4, 7)).astype(np.int32),
        "times": np.tile(np.arange(7, dtype=np.int32), (4, 1)),
        "index": np.arange(4, dtype=np.int32),
    }
    found = []
    for compute in ({}, {"accumulate": 2, "devices": 2}):
        config = config_of(**compute)
        content = training_content(config, dataset)
        partition = make_partition(config, make_method(config, dataset.num_items), content)
        state = partition.init()
        for _ in range(2):
            state, metrics = partition.step(state, batch)
        assert metrics["finite"] == 1
        found.append(jax.device_get(partition.gather(state).params))
    for other in found[1:]:
        for a, b in zip(*map(jax.tree.leaves, (found[0], other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_what_cannot_be_trained_is_refused(directory, tmp_path):
    sharded = {"model": {"table": "sharded", "item_features": 8}, "loss": {"negatives": 4}}
    with pytest.raises(UserError, match=r"table=sharded needs config.model.item_features=0"):
        from_dict(sharded | {"optim": {"table_learning_rate": 0.1}})
    log = pl.DataFrame({"user": ["u"] * 9, "item": ["i"] * 9, "timestamp": range(9)})
    prepare_log(log, tmp_path)
    with pytest.raises(UserError, match=r"knows no titles, .* prepare the data with --items"):
        training_content(config_of(), open_dataset(tmp_path / "data"))
    assert training_content(config_of(features=0), open_dataset(tmp_path / "data")) is None
    with pytest.raises(UserError, match="needs the items of a dataset"):
        make_partition(config_of(), make_method(config_of(), 5))


def test_models_without_content_keep_their_hash():
    assert config_hash(config_of(features=8)) != config_hash(config_of(features=0))
    old = config_of(features=0)
    assert "item_features" not in run_identity(old)["model"]
