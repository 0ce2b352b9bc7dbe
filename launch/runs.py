"""One training run of a comparison, and what its evaluation found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rec2pm_jax.config import Config, config_hash, to_dict
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.evaluate.evaluator import evaluate
from rec2pm_jax.evaluate.heuristic import evaluate_heuristic
from rec2pm_jax.evaluate.record import Evaluation
from rec2pm_jax.methods.base import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.stream.latency import measure
from rec2pm_jax.train.checkpoint import load_for_inference
from rec2pm_jax.train.loop import train_and_evaluate
from rec2pm_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of a comparison: the evaluation and its JSON record."""

    evaluation: Evaluation
    record: dict[str, Any]


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
            name, dataset, split=split, protocol=config.data.protocol, **setting
        )
        shown = {"window": None, "half_life": None} | setting
        results.append(Result(evaluation, evaluation.record(config=shown, git_commit=git_commit())))
    return results


def train(
    config: Config, dataset: Dataset, workdir: str | Path
) -> tuple[Method, Params, dict[str, Any], float]:
    """Trains, or goes on, or does nothing where the run is complete: the best checkpoint.

    Returns:
      (method, its parameters, the checkpoint's meta data, seconds of training in all).

    Raises:
      UserError: as training does.
    """
    method = make_method(config, dataset.num_items)

    def validate(params):
        users = config.train.eval_users
        found = evaluate(method, params, dataset, split="validation", max_users=users, swap=False)
        return found.metrics

    summary = train_and_evaluate(config, dataset, method, workdir, validate)
    _, params, meta = load_for_inference(workdir)
    return method, params, meta, summary["wall_s"]


def train_and_test(
    config: Config,
    dataset: Dataset,
    workdir: str | Path,
    *,
    split: str = "test",
    memories: Sequence[str] = ("",),
) -> list[Result]:
    """Trains and evaluates the best checkpoint, once per kind of memory ("": the method's own).

    Records carry `update_ms` and `read_ms` (B = 1, medians) and `train_wall_s`.

    Raises:
      UserError: as training and evaluation do.
    """
    method, params, meta, wall_s = train(config, dataset, workdir)
    print(f"evaluating {config.method.name} ...", flush=True)
    extra = measure(method, params) | {"train_wall_s": round(wall_s, 1)}
    results = []
    for memory in memories:
        evaluation = evaluate(method, params, dataset, split=split, memory=memory)
        record = evaluation.record(
            config=to_dict(config),
            config_hash=config_hash(config),
            seed=config.train.seed,
            step=meta["step"],
            git_commit=meta["git_commit"],
        )
        results.append(Result(evaluation, record | extra))
    return results
