"""Training that reads all events and predicts some types: losses, counted targets, a whole run."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.data.pipeline import train_iterator
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.training.checkpoint import load_for_inference
from rec2pm_jax.training.loop import train_and_evaluate
from tests.helpers import sharded
from tests.helpers.methods import batch_of, make
from tests.helpers.stream import make_data


@pytest.mark.parametrize("name", ["recent"])
def test_positions_count_by_their_weights(name):
    """The sum over purchases and the sum over views are the sum over all; weights scale them."""
    method, params = make(name=name)
    batch = batch_of([10, 7, 4], 10)
    bought = np.random.default_rng(1).integers(0, 2, batch["ids"].shape) * (batch["ids"] > 0)

    @jax.jit
    def loss(params, batch):
        return method.loss(params, batch, None)["ar"]

    whole, count = loss(params, batch)
    (of_bought, weight), (of_viewed, _) = (
        loss(params, batch | {"weights": mask.astype(np.float32)})
        for mask in (bought, (batch["ids"] > 0) & ~bought.astype(bool))
    )
    assert float(of_bought + of_viewed) == pytest.approx(float(whole), rel=1e-5)
    assert float(weight) == bought[:, 1:].sum() < float(count)
    half, less = loss(params, batch | {"weights": (0.5 * bought).astype(np.float32)})
    assert float(half) == pytest.approx(0.5 * float(of_bought), rel=1e-5)
    assert float(less) == 0.5 * float(weight)


@pytest.mark.slow
def test_a_sharded_table_counts_the_same_targets(monkeypatch):
    """Weights travel with the rows of a batch to the devices."""
    plain = sharded.batches

    def weighted(*args):
        for batch in plain(*args):
            yield batch | {"weights": (batch["ids"] % 2).astype(np.float32)}

    monkeypatch.setattr(sharded, "batches", weighted)
    config = sharded.config_of(compute={"devices": 2}, method={"name": "recent"})
    _, log = sharded.train(config, steps=1)
    (first,) = plain(config, 1)
    assert log[0]["tokens"] == (first["ids"][:, 1:] % 2).sum()


def test_a_run_trains_validates_and_is_tested_on_purchases(tmp_path):
    dataset = make_data(tmp_path)
    values = {
        "data": {"segment": 5, "segments": 2, "protocol": "leave_one_out"},
        "model": {"layers": 1, "dim": 8, "event_types": 2, "use_times": True},
        "method": {"name": "recent", "exact_entries": 0},
        "loss": {"target_types": "buy"},
        "train": {"steps": 2, "batch_size": 4, "log_every": 1, "eval_every": 2},
    }
    config = from_dict(values)
    method = make_method(config, dataset.num_items)
    train_and_evaluate(config, dataset, method, tmp_path / "run")
    batches = train_iterator(dataset, config.data, 4, seed=0, target_types="buy")
    expected = [int((next(batches)["weights"][:, 1:] > 0).sum()) for _ in range(2)]
    log = [json.loads(line) for line in (tmp_path / "run/train/train.jsonl").open()]
    assert [row["tokens"] for row in log] == expected
    _, params, meta = load_for_inference(tmp_path / "run")
    assert meta["config"]["loss"]["target_types"] == "buy"
    validated = json.loads((tmp_path / "run/train/validation.jsonl").read_text().splitlines()[-1])
    found = evaluate(method, params, dataset, EvalSpec("validation", swap=False))
    assert validated["ndcg@10"] == found.metrics["ndcg@10"]
    buy = dataset.event_types.index("buy") + 1
    for user, event in zip(found.user, found.event, strict=True):
        assert dataset.sequence(user).types[event] == buy

    other = from_dict(values | {"loss": {"target_types": "buy,view=0.5"}})
    with pytest.raises(UserError, match="loss.target_types was 'buy', now 'buy,view=0.5'"):
        train_and_evaluate(other, dataset, make_method(other, 30), tmp_path / "run")
    wrong = from_dict(values | {"loss": {"target_types": "cart"}})
    with pytest.raises(UserError, match="no event of type 'cart'; it has buy, view"):
        train_and_evaluate(wrong, dataset, make_method(wrong, 30), tmp_path / "new")
    assert not (tmp_path / "new").exists()
