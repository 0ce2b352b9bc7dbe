"""One training run of a comparison, and what its evaluation found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import config_hash, to_dict
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.splits import settings as protocol_settings
from rec2pm_jax.evaluate.evaluator import evaluate
from rec2pm_jax.evaluate.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluate.record import Evaluation
from rec2pm_jax.evaluate.spec import EvalSpec
from rec2pm_jax.evaluate.validation import validate
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.stream.latency import measure
from rec2pm_jax.train.checkpoint import load_for_inference
from rec2pm_jax.train.loop import train_and_evaluate
from rec2pm_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of a comparison: the evaluation and its JSON record.

    Attributes:
      by_target: whether tables need every target's value, not only every user's mean.
    """

    evaluation: Evaluation
    record: dict[str, Any]
    by_target: bool = False


def heuristics(config: Config, dataset: Dataset, split: str = "test") -> list[Result]:
    """What every table must beat: popularity, personal frequency (recent window, whole, decayed)."""
    settings: list[tuple[str, dict[str, float]]] = [
        ("popularity", {}),
        ("personal_frequency", {"window": config.data.read_length}),
        ("personal_frequency", {}),
        ("personal_frequency", {"half_life": 200.0}),
    ]
    results = []
    for name, setting in settings:
        evaluation = evaluate_heuristic(
            Heuristic(name, **setting), dataset, EvalSpec(split), config.data
        )
        shown = {"window": None, "half_life": None} | setting | protocol_settings(config.data)
        results.append(Result(evaluation, evaluation.record(config=shown, git_commit=git_commit())))
    return results


class Trained(NamedTuple):
    """The best checkpoint of a complete run.

    Attributes:
      meta: the checkpoint's meta data.
      wall_s: seconds of training in all.
      device: what it was trained on, as JAX names it.
    """

    config: Config
    method: Method
    params: Params
    meta: dict[str, Any]
    wall_s: float
    device: str


def suited(config: Config) -> Config:
    """Micro-batches of comparisons are for the caches of CPU cores; accelerators take whole batches."""
    if jax.default_backend() == "cpu":
        return config
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, accumulate=1))


def train(config: Config, dataset: Dataset, workdir: str | Path) -> Trained:
    """Trains, or goes on, or does nothing where the run is complete.

    Raises:
      UserError: as training does.
    """
    method = make_method(config, dataset.num_items)

    def on_validation(params):
        return validate(method, params, dataset, max_users=config.train.eval_users)

    summary = train_and_evaluate(config, dataset, method, workdir, on_validation)
    _, params, meta = load_for_inference(workdir)
    return Trained(config, method, params, meta, summary["wall_s"], summary["device"])


def assess(trained: Trained, dataset: Dataset, **options: Any) -> Result:
    """Evaluates a trained model; options as the fields of `EvalSpec`.

    Raises:
      UserError: as evaluation does.
    """
    print(f"evaluating {trained.config.method.name} ...", flush=True)
    evaluation = evaluate(trained.method, trained.params, dataset, EvalSpec(**options))
    record = evaluation.record(
        config=to_dict(trained.config),
        config_hash=config_hash(trained.config),
        seed=trained.config.train.seed,
        step=trained.meta["step"],
        git_commit=trained.meta["git_commit"],
    )
    training = {"train_wall_s": round(trained.wall_s, 1), "train_device": trained.device}
    return Result(evaluation, record | training)


def train_and_test(config: Config, dataset: Dataset, workdir: str | Path) -> Result:
    """Trains and evaluates on the test split; the record has `update_ms` and `read_ms` (B = 1) too.

    Raises:
      UserError: as training and evaluation do.
    """
    trained = train(config, dataset, workdir)
    result = assess(trained, dataset, split="test")
    result.record.update(measure(trained.method, trained.params))
    return result
