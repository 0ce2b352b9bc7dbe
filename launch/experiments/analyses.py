"""What a suite does with a trained model: each analysis returns labelled evaluations."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from launch.experiments.anatomy import examine_anatomy
from launch.experiments.run import Run
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.evaluation.denoise import KINDS, Noise
from rec2pm_jax.evaluation.heuristic import dataset_popularity
from rec2pm_jax.evaluation.histories import load_histories
from rec2pm_jax.evaluation.memory_drift import measure_drift, measure_rounding_drift
from rec2pm_jax.methods.codec import FORMATS
from rec2pm_jax.runs import Result, TrainedModel, evaluate_model

Analysis = Callable[[Run, TrainedModel, Dataset], list[Result]]

FRACTIONS = (0.1, 0.2, 0.3, 0.5)  # of archived events that noise replaces
DRIFT_UPDATES = (1, 2, 5, 10, 20, 40, 80, 120)


def evaluate_memories(run: Run, model: TrainedModel, dataset: Dataset) -> list[Result]:
    """Return one evaluation per kind of memory, stored as int8, from the same weights.

    Where the model reads times, there is one more of requests whose time is not known.
    """
    options: dict[str, Any] = {"split": run.split, "memory_format": "int8"}
    results = [evaluate_model(model, dataset, memory=m, **options) for m in run.memories]
    if model.method.config.reads_times:
        results.append(
            evaluate_model(model, dataset, request_time_known=False, swap=False, **options)
        )
    return results


def evaluate_noise(run: Run, model: TrainedModel, dataset: Dataset) -> list[Result]:
    """Return one evaluation per kind and share of noise in the archive, the clean one first.

    Records name kind and share in `noise`.
    """
    popularity = dataset_popularity(dataset, bound_rule(model.config.data, dataset))
    settings = [("random", 0.0), *((kind, share) for kind in KINDS for share in FRACTIONS)]
    results = []
    for kind, fraction in settings:
        noise = Noise(kind, fraction, model.config.data, popularity)
        result = evaluate_model(model, dataset, split=run.split, corrupt=noise, swap=False)
        result.record["noise"] = {"kind": kind, "fraction": fraction}
        results.append(result)
    return results


def evaluate_lifelong(run: Run, model: TrainedModel, dataset: Dataset) -> list[Result]:
    """Return one evaluation whose record has `drift` of iterated from one-time memory.

    The drift is empty for methods that do not have both kinds of memory.
    """
    result = evaluate_model(model, dataset, split=run.split, swap=False)
    histories = load_histories(dataset, np.arange(dataset.num_users))
    result.record["drift"] = measure_drift(
        model.method, model.params, histories, updates=DRIFT_UPDATES
    )
    return [result]


def evaluate_formats(run: Run, model: TrainedModel, dataset: Dataset) -> list[Result]:
    """Return one evaluation per split and format that memory is stored in between updates.

    Records name the format in `stored` and have `drift` from the float32 memory.
    """
    histories = load_histories(dataset, np.arange(dataset.num_users))
    results = []
    for split, kind in itertools.product(("test", "validation"), FORMATS):
        result = evaluate_model(model, dataset, split=split, memory_format=kind, swap=False)
        result.record["stored"] = kind
        results.append(result)
        if split == "test" and kind != "float32":
            steps = measure_rounding_drift(
                model.method, model.params, histories, kind, updates=DRIFT_UPDATES
            )
            result.record["drift"] = steps
    return results


def evaluate_targets(run: Run, model: TrainedModel, dataset: Dataset) -> list[Result]:
    """Return one evaluation that keeps the NDCG@10 of every target.

    Tables group targets by the number of raw events that their read sees.
    """
    result = evaluate_model(model, dataset, split=run.split, swap=False)
    return [dataclasses.replace(result, by_target=True)]


ANALYSES: dict[str, Analysis] = {
    "test": evaluate_memories,
    "denoise": evaluate_noise,
    "lifelong": evaluate_lifelong,
    "anatomy": examine_anatomy,
    "quantised": evaluate_formats,
    "since_archive": evaluate_targets,
}
