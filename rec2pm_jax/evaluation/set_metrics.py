"""Metrics of one ranked list per user, whose targets are a set of items (protocol `last_basket`).

For a user with targets T, of which H(k) are among the first k places:

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

import numpy as np

HIT_CUTOFFS = (1, 10, 50)
NDCG_CUTOFFS = (10, 50)
RECALL_CUTOFFS = (10, 50)
PRECISION_CUTOFFS = (10,)


def set_metrics(ranks: np.ndarray, users: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of each user.

    >>> found = set_metrics(np.array([2, 1, 30]), users=np.array([7, 7, 7]))
    >>> found["recall@10"].round(3), found["precision@10"], found["map@10"].round(3)
    (array([0.667]), array([0.2]), array([0.667]))

    Args:
      ranks: int [T], pessimistic ranks of the targets, from 1. A user's targets are distinct items.
      users: int [T], the user of each target.

    Returns:
      {metric: float64 [distinct users]}, ascending by user.
    """
    order = np.lexsort((ranks, users))
    _, user, size = np.unique(users[order], return_inverse=True, return_counts=True)
    first = np.cumsum(size) - size
    number = np.arange(len(order)) - first[user]  # targets of the user that come before
    place = _find_places(ranks[order], user)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(user, weights=values, minlength=len(size))

    found = {k: total(place <= k) for k in {*HIT_CUTOFFS, *RECALL_CUTOFFS, *PRECISION_CUTOFFS}}
    metrics = {f"hr@{k}": np.minimum(found[k], 1.0) for k in HIT_CUTOFFS}
    for k in NDCG_CUTOFFS:
        gain = total(np.where(place <= k, 1.0 / np.log2(place + 1.0), 0.0))
        best = np.cumsum(1.0 / np.log2(np.arange(2.0, k + 2.0)))
        metrics[f"ndcg@{k}"] = gain / best[np.minimum(size, k) - 1]
    metrics["mrr"] = 1.0 / place[first]
    metrics |= {f"recall@{k}": found[k] / size for k in RECALL_CUTOFFS}
    metrics |= {f"precision@{k}": found[k] / k for k in PRECISION_CUTOFFS}
    for k in PRECISION_CUTOFFS:
        metrics[f"map@{k}"] = total(np.where(place <= k, (number + 1) / place, 0.0)) / size
    return metrics


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
