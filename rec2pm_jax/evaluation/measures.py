"""What an evaluation reports of its ranks and lists, the same for models and heuristics."""

from __future__ import annotations

from typing import Any

import numpy as np

from rec2pm_jax.data.splits import SplitRule
from rec2pm_jax.evaluation.histories import EvaluationData
from rec2pm_jax.evaluation.list_metrics import count_items, list_metrics
from rec2pm_jax.evaluation.metrics import summarize, user_means
from rec2pm_jax.evaluation.processes import Gathering
from rec2pm_jax.evaluation.slices import describe_targets, slice_metrics
from rec2pm_jax.evaluation.spec import Measures
from rec2pm_jax.evaluation.targets import Selection, distinct_reads, target_items


def measure(
    dataset: EvaluationData,
    rule: SplitRule,
    selection: Selection,
    ranks: np.ndarray,
    lists: np.ndarray | None,
    measures: Measures,
) -> dict[str, Any]:
    """Return the fields of an `Evaluation` that follow from ranks and lists.

    In a job of several processes each has its users, and all get the fields of all users.

    Args:
      dataset: a prepared dataset. Categories are those of `dataset.items.categories`.
      rule: bound to the dataset.
      selection: the users, with the histories that the dataset has, and the targets.
      ranks: int64 [T], rank of each target.
      lists: int32 [L, K], the recommended items of each of `targets.distinct_reads`; None if they are
        not measured.
      measures: what is measured.

    Returns:
      {field: value}.
    """
    targets, histories = selection.targets, selection.histories
    users, items = selection.users[targets.user], target_items(histories, targets)
    described = None
    if measures.slices:
        described = describe_targets(dataset, rule, histories, targets)
    everyone = Gathering(users, targets.event)
    columns = users, targets.position, targets.event, ranks, items, described
    user, position, event, rank, item, described = everyone.gather(columns)
    scope: dict[str, Any] = {"sets": rule.predicts_sets, "cutoffs": measures.cutoffs}
    found: dict[str, Any] = {
        "user": user,
        "position": position,
        "event": event,
        "rank": rank,
        "cutoffs": measures.cutoffs,
        "metrics": summarize(rank, user, **scope),
    }
    if lists is not None:
        categories = getattr(getattr(dataset, "items", None), "categories", None)
        facts = count_items(dataset, rule, categories)
        first = distinct_reads(targets)
        reads = Gathering(users[first], targets.position[first])
        lists, owners = reads.gather((lists, users[first]))
        chosen = facts.events[item] / facts.events.sum()
        found["list_metrics"] = list_metrics(lists, owners, facts, measures.list_cutoffs)
        found["list_metrics"]["target_popularity"] = float(user_means(chosen, user).mean())
    if described is not None:
        found["slices"] = slice_metrics(rank, user, described, **scope)
    return found
