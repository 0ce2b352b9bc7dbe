"""Metrics by how many training events the items have: new items, rare ones and the others."""

from __future__ import annotations

from typing import Any

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.splits import bound_rule, count_training_events
from rec2pm_jax.evaluation.histories import EvaluationData
from rec2pm_jax.evaluation.record import Evaluation

_GROUPS = (("0", 0, 0), ("1-5", 1, 5), ("more", 6, np.iinfo(np.int64).max))


def by_training_events(
    evaluation: Evaluation, dataset: EvaluationData, data: DataConfig
) -> list[dict[str, Any]]:
    """Return NDCG@10 and HR@10 of the targets whose items have 0, 1 to 5 and more training events.

    Args:
      evaluation: of a method or a heuristic on this dataset.
      dataset: the data.
      data: names the protocol of training.

    Returns:
      For each group `training_events`, its number of `items`, `targets` and `users`, and the metrics,
      means over these users; None without targets.
    """
    counts = count_training_events(dataset, bound_rule(data, dataset))
    of_target = counts[evaluation.item]
    rows = []
    for name, low, high in _GROUPS:
        chosen = (low <= of_target) & (of_target <= high)
        metrics = evaluation.user_metrics(evaluation.rank, chosen) if chosen.any() else {}
        rows.append(
            {
                "training_events": name,
                "items": int(np.sum((low <= counts[1:]) & (counts[1:] <= high))),
                "targets": int(chosen.sum()),
                "users": len(np.unique(evaluation.user[chosen])),
                **{m: float(metrics[m].mean()) if metrics else None for m in ("ndcg@10", "hr@10")},
            }
        )
    return rows
