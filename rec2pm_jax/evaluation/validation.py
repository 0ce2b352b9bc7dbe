"""Validate during training, in all processes of a job.

All processes get the same numbers, so that all of them stop, or save, at the same step.
"""

from __future__ import annotations

from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.evaluation.catalogue import catalogue_of
from rec2pm_jax.evaluation.histories import EvaluationData
from rec2pm_jax.evaluation.measures import measure
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import plan_rows, select_targets
from rec2pm_jax.methods.method import Method
from rec2pm_jax.typing import Params


def validate(
    method: Method,
    params: Params,
    dataset: EvaluationData,
    *,
    max_users: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return the metrics on the validation split, as `evaluate` computes them by default.

    Every process of the job makes this call.

    Args:
      method: the method in training.
      params: its parameters on one device of this process (`training.partition.local_replica`); a
        sharded item table stays spread over the devices.
      dataset: a prepared dataset.
      max_users: size of a pseudo-random subset of the users; None for all of them.
      seed: chooses the subset.

    Returns:
      {metric: value}, see `metrics.summarize`.

    Raises:
      UserError: no user has targets, there are fewer users than processes, or scores are not finite.
    """
    spec = EvalSpec("validation", max_users=max_users, seed=seed)
    rule = bound_rule(method.config.data, dataset, target_types=method.config.loss.target_types)
    selection = select_targets(dataset, rule, spec.split, max_users, seed, shared=True)
    histories, targets = selection.histories, selection.targets
    catalogue = catalogue_of(method, params)
    reader, rows = catalogue.reader(histories), plan_rows(targets, method, None)
    states = reader.compute_memories(rows, method.memory_kind, spec.batch_size)
    readout = reader.read(
        rows, states, batch_size=spec.batch_size, request_time=rule.request_time(spec.split)
    )
    ranks = catalogue.rank(histories, targets, readout, rule.mask_seen)
    return measure(dataset, rule, selection, ranks, None, spec.measures)["metrics"]
