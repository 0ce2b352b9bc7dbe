"""Metrics of parts of the targets: by history, by repetition, and by age and frequency of the item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rec2pm_jax.data.sequences import read_in_order
from rec2pm_jax.data.splits import SplitRule
from rec2pm_jax.evaluation.histories import EvaluationData, Histories
from rec2pm_jax.evaluation.list_metrics import count_items
from rec2pm_jax.evaluation.metrics import summarize
from rec2pm_jax.evaluation.targets import Targets, target_items

HISTORY_EDGES = (1, 10, 50, 100, 200, 500, 1000)  # events before the target
EVENT_EDGES = (0, 1, 6)  # training events of the item
AGE_EDGES = (0, 1, 7, 30, 90, 365)  # days since the first event of the item in the dataset
_DAY = 86_400


class TargetFacts(NamedTuple):
    """What slices need to know of each target.

    Attributes:
      history: int64 [T], events that the target is predicted from.
      repeated: bool [T], whether the item is one of them.
      trained: int64 [T], training events of the item.
      age: int64 [T], whole days since the first event of the item in the dataset; None without times.
    """

    history: np.ndarray
    repeated: np.ndarray
    trained: np.ndarray
    age: np.ndarray | None


def describe_targets(
    dataset: EvaluationData, rule: SplitRule, histories: Histories, targets: Targets
) -> TargetFacts:
    """Find the history length, the repetition, and the item's training events and age of each target.

    Args:
      dataset: a prepared dataset: first events of items are those of all its users.
      rule: bound to the dataset; it says which events are for training.
      histories: the events of the evaluated users.
      targets: their targets.
    """
    items = target_items(histories, targets)
    repeated = first_positions(dataset, histories, targets, items) < targets.position
    trained = count_items(dataset, rule).events[items]
    if histories.times is None:
        return TargetFacts(targets.position, repeated, trained, None)
    born = np.full(dataset.num_items + 1, np.iinfo(np.int64).max)
    for sequence in read_in_order(dataset):
        assert sequence.times is not None, "a dataset with times has them"
        np.minimum.at(born, sequence.ids, sequence.times)
    times = histories.times[histories.offsets[targets.user] + targets.event]
    return TargetFacts(targets.position, repeated, trained, (times - born[items]) // _DAY)


def first_positions(
    dataset: EvaluationData, histories: Histories, targets: Targets, items: np.ndarray
) -> np.ndarray:
    """Return the position of the first event of each target's item in the user's history: int64 [T]."""
    owner = np.repeat(np.arange(len(histories.users)), np.diff(histories.offsets))
    keys, first = np.unique(owner * (dataset.num_items + 1) + histories.ids, return_index=True)
    wanted = targets.user * (dataset.num_items + 1) + items
    return first[np.searchsorted(keys, wanted)] - histories.offsets[targets.user]


def slice_metrics(
    ranks: np.ndarray,
    users: np.ndarray,
    facts: TargetFacts,
    *,
    sets: bool = False,
    cutoffs: Sequence[int] = (),
) -> dict[str, list[dict[str, Any]] | None]:
    """Return the metrics of each slice of the targets, slices without targets left out.

    Where a protocol predicts sets, the targets of a slice are the set.

    Args:
      ranks: int [T], from 1.
      users: int [T], the user of each target.
      facts: of the targets.
      sets: as for `metrics.user_metrics`.
      cutoffs: as for `metrics.user_metrics`.

    Returns:
      `history_length`, `item`, `item_training_events` and `item_age_days`, each a list of {slice,
      users, targets, metrics}. The last is None for data without times.

    >>> facts = TargetFacts(np.array([3, 30]), np.array([True, False]), np.array([9, 0]), None)
    >>> found = slice_metrics(np.array([1, 20]), np.array([0, 1]), facts)
    >>> [(row["slice"], row["metrics"]["hr@10"]) for row in found["item"]]
    [('repeated', 1.0), ('new', 0.0)]
    >>> [row["slice"] for row in found["history_length"]], found["item_age_days"]
    (['1-9', '10-49'], None)
    """

    def measured(parts: Iterator[tuple[str, np.ndarray]]) -> list[dict[str, Any]]:
        return [
            {
                "slice": name,
                "users": len(np.unique(users[part])),
                "targets": int(part.sum()),
                "metrics": summarize(ranks[part], users[part], sets=sets, cutoffs=cutoffs),
            }
            for name, part in parts
            if part.any()
        ]

    repeated = iter((("repeated", facts.repeated), ("new", ~facts.repeated)))
    age = None if facts.age is None else measured(_bins(facts.age, AGE_EDGES))
    return {
        "history_length": measured(_bins(facts.history, HISTORY_EDGES)),
        "item": measured(repeated),
        "item_training_events": measured(_bins(facts.trained, EVENT_EDGES)),
        "item_age_days": age,
    }


def _bins(values: np.ndarray, edges: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the members of each bin [edge, next edge)."""
    for low, high in zip(edges, (*edges[1:], None), strict=True):
        if high is None:
            yield f"{low}+", values >= low
        else:
            name = f"{low}" if high == low + 1 else f"{low}-{high - 1}"
            yield name, (values >= low) & (values < high)
