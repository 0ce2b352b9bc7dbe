"""Measures of recommended lists, which need no targets.

For the first k places of all lists:

    coverage@k    share of the catalogue that is in some list
    popularity@k  mean share of the training events that an item has (average recommendation popularity)
    novelty@k     mean of -log2(share of the users with training events who have the item), in bits; an
                  item without training events counts as if one user had it
    diversity@k   share of the pairs of items in a list whose categories differ

They are RecTools' CatalogCoverage and AvgRecPopularity, both normalised, MeanInvUserFreq, and
IntraListDiversity with the Hamming distance of one-hot categories, up to its factor of 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rec2pm_jax.data.splits import SplitRule, training_ids
from rec2pm_jax.evaluation.histories import EvaluationData
from rec2pm_jax.evaluation.metrics import user_means


class ItemFacts(NamedTuple):
    """What measures of lists need to know of the items; row 0 of every field is padding.

    Attributes:
      events: int64 [V], training events of each item.
      users: int64 [V], users with a training event of the item.
      num_users: users with training events.
      categories: int64 [V], a number for each category from 1, 0 for none.
    """

    events: np.ndarray
    users: np.ndarray
    num_users: int
    categories: np.ndarray


def count_items(
    dataset: EvaluationData, rule: SplitRule, categories: Sequence[str | None] | None = None
) -> ItemFacts:
    """Count the training events of each item under a split rule.

    Args:
      dataset: a prepared dataset.
      rule: bound to the dataset.
      categories: of each item, the padding row included; None if there are none.
    """
    events, users = np.zeros((2, dataset.num_items + 1), np.int64)
    ends = rule.train_ends(dataset.lengths)
    for ids in training_ids(dataset, rule):
        items, counts = np.unique(ids, return_counts=True)
        events[items] += counts
        users[items] += 1
    numbers = np.zeros(dataset.num_items + 1, np.int64)
    if categories is not None:
        known = {name: n for n, name in enumerate(sorted({c for c in categories if c}), 1)}
        numbers = np.array([known[c] if c else 0 for c in categories], np.int64)
    return ItemFacts(events, users, int(np.count_nonzero(ends)), numbers)


def list_metrics(
    lists: np.ndarray, users: np.ndarray, facts: ItemFacts, cutoffs: Sequence[int]
) -> dict[str, Any]:
    """Measure recommended lists. Means are over users, of the mean over a user's lists.

    Args:
      lists: int [L, K], items from the best on; 0 in places that no item is left for, at the end.
      users: int [L], the user of each list.
      facts: of the items.
      cutoffs: numbers of places, at most K.

    Returns:
      `lists` and `users`; `incomplete_lists`, those with fewer than K items; `uncategorised`, the share
      of recommended items without a category; and the measures at each cutoff. Pairs with an item
      without category are left out of diversity; it is None if no list has another pair.

    >>> facts = ItemFacts(np.array([0, 6, 2, 0]), np.array([0, 4, 2, 0]), 4, np.array([0, 1, 1, 2]))
    >>> found = list_metrics(np.array([[1, 2], [1, 3]]), np.array([0, 1]), facts, [2])
    >>> found["coverage@2"], found["popularity@2"], found["novelty@2"], found["diversity@2"]
    (1.0, 0.4375, 0.75, 0.5)
    """
    share = facts.events / max(int(facts.events.sum()), 1)
    novelty = -np.log2(np.maximum(facts.users, 1) / max(facts.num_users, 1))
    full = lists > 0
    found: dict[str, Any] = {
        "lists": len(lists),
        "users": len(np.unique(users)),
        "incomplete_lists": int((~full.all(axis=1)).sum()),
        "uncategorised": float((facts.categories[lists[full]] == 0).mean()) if full.any() else 0.0,
    }
    for k in cutoffs:
        items, there = lists[:, :k], full[:, :k]
        count = np.maximum(there.sum(axis=1), 1)
        distinct = int(np.count_nonzero(np.unique(items)))
        found[f"coverage@{k}"] = distinct / (len(facts.events) - 1)
        for name, values in (("popularity", share), ("novelty", novelty)):
            means = np.where(there, values[items], 0.0).sum(axis=1) / count
            found[f"{name}@{k}"] = float(user_means(means, users).mean())
        diversity, counted = _diversities(facts.categories[items])
        of_users = user_means(diversity[counted], users[counted]) if counted.any() else None
        found[f"diversity@{k}"] = None if of_users is None else float(of_users.mean())
    return found


def _diversities(categories: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of pairs with different categories in each list, and which lists have a pair.

    Args:
      categories: int [L, K], 0 for none.
    """
    rows, columns = np.nonzero(categories)
    known = np.bincount(rows, minlength=len(categories))
    pairs = known * (known - 1) // 2
    groups, sizes = np.unique(
        np.stack([rows, categories[rows, columns]]), axis=1, return_counts=True
    )
    same = np.bincount(groups[0], sizes * (sizes - 1) / 2, minlength=len(categories))
    return 1.0 - same / np.maximum(pairs, 1), pairs > 0
