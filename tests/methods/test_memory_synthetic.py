"""The unit test of it all: a taste that shows only in old events must reach the reader by memory."""

from __future__ import annotations

import pytest

from launch.configs import synthetic
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.training.checkpoint import load_for_inference
from rec2pm_jax.training.loop import train_and_evaluate


@pytest.mark.slow
def test_memory_carries_a_taste_that_only_old_events_show(tmp_path):
    """A reader who does not know the taste gets .28; the preset gets .80 after 400 steps."""
    prepare(PrepareOptions(source="synthetic", output_dir=str(tmp_path / "data"), progress=False))
    dataset = open_dataset(tmp_path / "data")
    preset = synthetic.get_config()
    preset.train.steps = 400
    config = from_dict(preset.to_dict())
    method = make_method(config, dataset.num_items)

    def validate(params):
        return evaluate(method, params, dataset, EvalSpec("validation", max_users=300)).metrics

    train_and_evaluate(config, dataset, method, tmp_path / "run", validate)
    _, params, _ = load_for_inference(tmp_path / "run")
    found = evaluate(method, params, dataset, EvalSpec("test", max_users=500))
    assert found.metrics["ndcg@10"] > 0.6
    swapped = found.record(config={})["swap"]["ndcg@10"]
    assert swapped < 0.35
