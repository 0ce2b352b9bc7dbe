"""Training continues with appended logs: larger tables, batches of the grown data."""

from __future__ import annotations

import json
import shutil
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.pipeline import train_iterator
from rec2pm_jax.data.prepare import append, compact
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.training.checkpoint import Checkpoints, load_for_inference
from rec2pm_jax.training.checkpoint_store import abstract_with_sharding
from rec2pm_jax.training.loop import train_and_evaluate
from rec2pm_jax.training.new_items import grow_items, grow_state
from rec2pm_jax.training.optimizer import make_optimizer
from rec2pm_jax.training.step import init_train_state, make_train_step
from tests.helpers.data import prepare_log

START, END = 4, 8


def config_of(steps: int):
    return from_dict(
        {
            "data": {"segment": 3, "segments": 2, "protocol": "leave_one_out"},
            "method": {"name": "full"},
            "model": {"dim": 8, "layers": 1, "heads": 1, "dropout": 0.1},
            "optim": {"schedule": "constant", "warmup_steps": 2},
            "train": {"steps": steps, "batch_size": 4, "eval_every": 3, "log_every": 1}
            | {"checkpoint_every": 2},
        }
    )


def log(users: range, items: int, seed: int, start: int = 1000) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{u:02d}", f"i{i}", start + n)
        for u in users
        for n, i in enumerate(rng.integers(0, items, 9))
    ]
    return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")


def grow(directory, day: pl.DataFrame, name: str) -> None:
    day.write_parquet(directory / f"{name}.parquet")
    append(
        PrepareOptions(
            "interactions",
            str(directory / "data"),
            input=str(directory / f"{name}.parquet"),
            progress=False,
        )
    )


def train(directory, workdir: str, steps: int, data: str = "data"):
    dataset, config = open_dataset(directory / data), config_of(steps)
    method = make_method(config, dataset.num_items)

    def validate(params):
        table = params["embedding"]["item_embedding"]
        return {"ndcg@10": float(jnp.abs(table).mean()) / (1 + dataset.num_users)}

    return train_and_evaluate(config, dataset, method, directory / workdir, validate)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A run of START steps, then data with more users, items and events."""
    directory = tmp_path_factory.mktemp("grown")
    prepare_log(log(range(12), 10, seed=0), directory)
    prepare_log(log(range(12), 10, seed=1), directory, name="unrelated")
    train(directory, "run", START)
    for copy in ("start", "interrupted"):
        shutil.copytree(directory / "run", directory / copy)
    grow(directory, log(range(6, 20), 14, seed=2, start=2000), "day")
    train(directory, "run", END)
    return directory


def state_before(directory, num_items: int):
    """The checkpoint of step START, read apart from the loop."""
    config = config_of(END)
    method = make_method(config, num_items)
    optimizer = make_optimizer(config.optim, END)
    abstract = abstract_with_sharding(
        jax.eval_shape(lambda: init_train_state(method, optimizer, config.train.seed))
    )
    iterator = train_iterator(open_dataset(directory / "data"), config.data, 4, config.train.seed)
    checkpoints = Checkpoints(directory / "start", 20)
    try:
        return checkpoints.restore(lambda meta: abstract, iterator, lambda meta: None).state
    finally:
        checkpoints.close()


def test_continues_as_plain_steps_over_the_grown_data_would(grown):
    config, dataset = config_of(END), open_dataset(grown / "data")
    before = open_dataset(grown / "unrelated").num_items
    state = state_before(grown, before)
    rows = dataset.num_items + 1
    assert rows > before + 1

    # By hand: rows appended to the table, zeros to the moments of Adam, then plain steps.
    params = grow_items(state.params, dataset.num_items)
    old = state.params["embedding"]["item_embedding"]
    np.testing.assert_array_equal(params["embedding"]["item_embedding"][: len(old)], old)
    padded = [
        np.concatenate([leaf, np.zeros((rows - len(leaf), 8), leaf.dtype)])
        if leaf.shape == (before + 1, 8)
        else leaf
        for leaf in map(np.asarray, jax.tree.leaves(state.opt_state))
    ]
    opt_state = jax.tree.unflatten(jax.tree.structure(state.opt_state), padded)
    expected = state._replace(params=params, opt_state=opt_state)
    method = make_method(config, dataset.num_items)
    jax.tree.map(
        np.testing.assert_array_equal,
        grow_state(state, method, before),
        expected,
    )
    step = jax.jit(make_train_step(method, make_optimizer(config.optim, END), config.train.seed))
    batches = train_iterator(dataset, config.data, 4, config.train.seed)
    for batch in islice(batches, START, END):
        expected, _ = step(expected, batch)
    _, got, meta = load_for_inference(grown / "run", "latest")
    assert meta["num_items"] == dataset.num_items and meta["data_hash"] == dataset.content_hash
    # Two programs of one step may differ in the last bit, and Adam makes steps of rounding errors.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, expected.params)


def test_validation_starts_anew(grown):
    rows = [json.loads(r) for r in (grown / "run/train/validation.jsonl").open()]
    assert [row["step"] for row in rows] == [3, START, START, 6, END]
    # The old best was on other targets, and higher here by construction.
    assert max(row["ndcg@10"] for row in rows[:2]) > max(row["ndcg@10"] for row in rows[2:])
    summary = json.loads((grown / "run/train/summary.json").read_text())
    assert summary["best_step"] >= START and summary["best"]["ndcg@10"] < rows[0]["ndcg@10"]


def test_a_stop_after_the_growth_changes_nothing(grown, capsys):
    train(grown, "interrupted", START + 2)
    assert "The data were appended to since step 4" in capsys.readouterr().out
    train(grown, "interrupted", END)
    assert "appended to" not in capsys.readouterr().out
    (_, got, _), (_, want, _) = (
        load_for_inference(grown / name, "latest") for name in ("interrupted", "run")
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_other_data_and_complete_runs_are_refused(grown):
    with pytest.raises(UserError, match="was trained on other data"):
        train(grown, "run", END + 2, data="unrelated")
    grow(grown, log(range(2), 3, seed=3, start=3000), "night")
    with pytest.raises(
        UserError, match=r"complete at step 8.*raise --config.train.steps \(now 8\)"
    ):
        train(grown, "run", END)
    compact(str(grown / "data"), progress=False)
    assert train(grown, "run", END + 2)["steps"] == END + 2
