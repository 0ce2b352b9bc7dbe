"""Metrics of ranked lists whose targets are sets of items (protocols `last_basket`, `temporal_set`).

A single target is a set of one. For a list with targets T, of which H(k) are among the first k places:

    hr@k        [H(k) > 0]
    recall@k    H(k) / |T|
    precision@k H(k) / k
    ndcg@k      sum of 1 / log2(place + 1) over the targets in the first k places, over the largest
                value that min(k, |T|) targets can reach
    map@k       sum of H(place) / place over the targets in the first k places, over |T|
    mrr         1 / place of the first target

ranx defines them so, and so does RecTools if its NDCG divides by the best order of the set. The rank of
each target in the whole catalogue is enough, because the other targets are items of the catalogue, too.
Items that tie with targets come before them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FAMILIES = ("hr", "ndcg", "recall", "precision", "map")  # metrics at k places
METRICS = ("hr@1", "hr@10", "hr@50", "ndcg@10", "ndcg@50", "mrr")  # of all protocols
SET_METRICS = (*METRICS, "recall@10", "recall@50", "precision@10", "map@10")


def metric_names(sets: bool, cutoffs: Sequence[int] = ()) -> tuple[str, ...]:
    """Return the metrics of a protocol, and those of all families at further cutoffs.

    >>> metric_names(False, [10])[len(METRICS) :]
    ('recall@10', 'precision@10', 'map@10')
    """
    names = SET_METRICS if sets else METRICS
    return tuple(dict.fromkeys((*names, *(f"{name}@{k}" for k in cutoffs for name in FAMILIES))))


def set_metrics(
    ranks: np.ndarray, users: np.ndarray, names: Sequence[str] = SET_METRICS
) -> dict[str, np.ndarray]:
    """Return the metrics of each user.

    >>> found = set_metrics(np.array([2, 1, 30]), users=np.array([7, 7, 7]))
    >>> found["recall@10"].round(3), found["precision@10"], found["map@10"].round(3)
    (array([0.667]), array([0.2]), array([0.667]))

    Args:
      ranks: int [T], pessimistic ranks of the targets, from 1. A user's targets are distinct items.
      users: int [T], the user of each target.
      names: of the metrics, as `metric_names` returns them.

    Returns:
      {metric: float64 [distinct users]} in the order of `names`, ascending by user.
    """
    order = np.lexsort((ranks, users))
    _, user, size = np.unique(users[order], return_inverse=True, return_counts=True)
    first = np.cumsum(size) - size
    number = np.arange(len(order)) - first[user]  # targets of the user that come before
    place = _find_places(ranks[order], user)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(user, weights=values, minlength=len(size))

    def metric(name: str) -> np.ndarray:
        family, _, cutoff = name.partition("@")
        if family == "mrr":
            return 1.0 / place[first]
        k = int(cutoff)
        hit = place <= k
        if family == "ndcg":
            best = np.cumsum(1.0 / np.log2(np.arange(2.0, k + 2.0)))
            gain = total(np.where(hit, 1.0 / np.log2(place + 1.0), 0.0))
            return gain / best[np.minimum(size, k) - 1]
        if family == "map":
            return total(np.where(hit, (number + 1) / place, 0.0)) / size
        found = total(hit)
        if family == "hr":
            return np.minimum(found, 1.0)
        return found / (size if family == "recall" else k)

    return {name: metric(name) for name in names}


def _find_places(ranks: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Return the places of targets in one list, in which equal ranks take neighbouring places.

    The pessimistic rank of tied targets is the last place of the tie, for all of them.

    Args:
      ranks: int [T], ascending within a user.
      user: int [T], ascending.
    """
    last = np.append((np.diff(ranks) != 0) | (np.diff(user) != 0), True)  # of a tie
    end = np.flatnonzero(last)[np.append(0, np.cumsum(last)[:-1])]
    return ranks - (end - np.arange(len(ranks)))
