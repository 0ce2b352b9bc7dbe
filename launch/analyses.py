"""What a suite does with a trained model: each analysis returns labelled evaluations."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from launch.anatomy import anatomy
from launch.runs import Result, Trained, assess
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.evaluate.denoise import KINDS, Noise
from rec2pm_jax.evaluate.heuristic import dataset_popularity
from rec2pm_jax.evaluate.histories import load_histories
from rec2pm_jax.evaluate.memory_drift import measure_drift, measure_rounding_drift
from rec2pm_jax.methods.codec import FORMATS

if TYPE_CHECKING:
    from launch.suites import Run

FRACTIONS = (0.1, 0.2, 0.3, 0.5)
DRIFT_UPDATES = (1, 2, 5, 10, 20, 40, 80, 120)


def test(run: Run, trained: Trained, dataset: Dataset) -> list[Result]:
    """One record per kind of memory, from the same weights."""
    return [assess(trained, dataset, split=run.split, memory=m) for m in run.memories]


def denoise(run: Run, trained: Trained, dataset: Dataset) -> list[Result]:
    """One record per kind and share of noise in the archive, named in `noise`; the first is clean."""
    popularity = dataset_popularity(dataset, bound_rule(trained.config.data, dataset))
    settings = [("random", 0.0), *((kind, share) for kind in KINDS for share in FRACTIONS)]
    results = []
    for kind, fraction in settings:
        noise = Noise(kind, fraction, trained.config.data, popularity)
        result = assess(trained, dataset, split=run.split, corrupt=noise, swap=False)
        result.record["noise"] = {"kind": kind, "fraction": fraction}
        results.append(result)
    return results


def lifelong(run: Run, trained: Trained, dataset: Dataset) -> list[Result]:
    """One record, with `drift` of iterated from one-time memory where the method has both."""
    result = assess(trained, dataset, split=run.split, swap=False)
    histories = load_histories(dataset, np.arange(dataset.num_users))
    result.record["drift"] = measure_drift(
        trained.method, trained.params, histories, updates=DRIFT_UPDATES
    )
    return [result]


def quantised(run: Run, trained: Trained, dataset: Dataset) -> list[Result]:
    """One record per split and format that memory is kept in between updates, named in `stored`; with
    `drift` from the float32 memory."""
    histories = load_histories(dataset, np.arange(dataset.num_users))
    results = []
    for split, kind in itertools.product(("test", "validation"), FORMATS):
        result = assess(trained, dataset, split=split, memory_format=kind, swap=False)
        result.record["stored"] = kind
        results.append(result)
        if split == "test" and kind != "float32":
            steps = measure_rounding_drift(
                trained.method, trained.params, histories, kind, updates=DRIFT_UPDATES
            )
            result.record["drift"] = steps
    return results


def since_archive(run: Run, trained: Trained, dataset: Dataset) -> list[Result]:
    """One record, with the NDCG@10 of every target beside it: tables group it by raw events read."""
    result = assess(trained, dataset, split=run.split, swap=False)
    return [dataclasses.replace(result, by_target=True)]


ANALYSES: dict[str, Callable[..., list[Result]]] = {
    "test": test,
    "denoise": denoise,
    "lifelong": lifelong,
    "anatomy": anatomy,
    "quantised": quantised,
    "since_archive": since_archive,
}
