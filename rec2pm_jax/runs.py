"""Train a configuration and evaluate what came out: the steps behind every row of a comparison."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.splits import settings as protocol_settings
from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.record import Evaluation
from rec2pm_jax.evaluation.spec import EvalSpec, Measures
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import config_hash, make_method
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.stream.latency import measure
from rec2pm_jax.training.checkpoint import load_for_inference
from rec2pm_jax.training.item_content import dataset_params
from rec2pm_jax.training.loop import train_and_evaluate
from rec2pm_jax.training.run_checks import fit_to_data
from rec2pm_jax.training.trained_run import TrainedRun
from rec2pm_jax.typing import Params

MEASURES = Measures()  # the metrics that every record has


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of a comparison: an evaluation and its JSON record.

    Attributes:
      by_target: whether tables need every target's value, not only every user's mean.
    """

    evaluation: Evaluation
    record: dict[str, Any]
    by_target: bool = False


@dataclasses.dataclass(frozen=True)
class TrainedModel:
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


def list_heuristics(config: Config, dataset: Dataset) -> list[tuple[Heuristic, bool]]:
    """Return the heuristics that every table shows, and whether each knows the request time.

    Args:
      config: names the protocol and, by its read length, the recent window.
      dataset: a prepared dataset.

    Returns:
      Popularity; personal frequency over the recent window, the whole history, and with decay; counts
      and transitions. Then all of them again with a known request time, unless the dataset has no
      times or a basket is predicted as a whole: then no item of it is known.
    """
    heuristics = [
        Heuristic("popularity"),
        Heuristic("personal_frequency", window=config.data.read_length),
        Heuristic("personal_frequency"),
        Heuristic("personal_frequency", half_life=200.0),
        Heuristic("counts_and_transitions"),
    ]
    both = dataset.has_times and not split_rule(config.data.protocol).predicts_sets
    return [(one, known) for known in ((False, True) if both else (False,)) for one in heuristics]


def evaluate_heuristics(
    config: Config, dataset: Dataset, split: str = "test", measures: Measures = MEASURES
) -> list[Result]:
    """Evaluate the heuristics of `list_heuristics`.

    Args:
      config: as for `list_heuristics`; names the target types, too.
      dataset: a prepared dataset.
      split: which targets to rank.
      measures: what is measured.
    """
    results = []
    for heuristic, known in list_heuristics(config, dataset):
        spec = EvalSpec(
            split,
            request_time_known=known,
            target_types=config.loss.target_types,
            measures=measures,
        )
        evaluation = evaluate_heuristic(heuristic, dataset, spec, config.data)
        record = evaluation.record(config=protocol_settings(config.data), git_commit=git_commit())
        results.append(Result(evaluation, record))
    return results


def fit_to_backend(config: Config) -> Config:
    """Return `config` without micro-batches unless JAX runs on a CPU.

    Micro-batches of comparisons exist for the caches of CPU cores; accelerators take whole batches.
    """
    if jax.default_backend() == "cpu":
        return config
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, accumulate=1))


def train_model(config: Config, dataset: Dataset, workdir: str | Path) -> TrainedModel:
    """Train a model, or resume, or only load it if the run is complete.

    Args:
      config: the whole configuration.
      dataset: the prepared dataset to train on.
      workdir: directory of the run.

    Raises:
      UserError: as training does.
    """
    config = fit_to_data(config, dataset)
    method = make_method(config, dataset.num_items)
    summary = train_and_evaluate(config, dataset, method, workdir)
    _, params, meta = load_for_inference(workdir)
    params = dataset_params(config, params, dataset, meta["num_items"])
    return TrainedModel(config, method, params, meta, summary["wall_s"], summary["device"])


def evaluate_model(model: TrainedModel, dataset: Dataset, **options: Any) -> Result:
    """Evaluate a trained model and record how it was trained.

    Args:
      model: of `train_model`.
      dataset: the dataset it was trained on.
      options: fields of `EvalSpec`.

    Raises:
      UserError: as evaluation does.
    """
    print(f"evaluating {model.config.method.name} ...", flush=True)
    evaluation = evaluate(model.method, model.params, dataset, EvalSpec(**options))
    record = evaluation.record(
        config=to_dict(model.config),
        config_hash=config_hash(model.config),
        seed=model.config.train.seed,
        step=model.meta["step"],
        git_commit=model.meta["git_commit"],
    )
    training = {"train_wall_s": round(model.wall_s, 1), "train_device": model.device}
    return Result(evaluation, record | training)


def evaluate_run(run: TrainedRun, spec: EvalSpec) -> Result:
    """Evaluate a run that was loaded with its data.

    Args:
      run: of `training.trained_run.load_run`.
      spec: the conditions.

    Raises:
      UserError: as evaluation does.
    """
    evaluation = evaluate(run.method, run.params, run.dataset, spec)
    record = evaluation.record(
        config=to_dict(run.config),
        config_hash=config_hash(run.config),
        seed=run.config.train.seed,
        step=run.meta["step"],
        git_commit=git_commit(),
    )
    return Result(evaluation, record)


def train_and_test(
    config: Config, dataset: Dataset, workdir: str | Path, measures: Measures = MEASURES
) -> Result:
    """Train a model and evaluate it on the test split; measure `update_ms` and `read_ms` (B = 1) too.

    Args:
      config, dataset, workdir: as for `train_model`.
      measures: what the evaluation measures.

    Raises:
      UserError: as training and evaluation do.
    """
    model = train_model(config, dataset, workdir)
    result = evaluate_model(model, dataset, split="test", measures=measures)
    result.record.update(measure(model.method, model.params))
    return result
