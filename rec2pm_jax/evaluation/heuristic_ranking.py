"""Rank targets and recommend items by scores of whole histories, for heuristics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rec2pm_jax.data.last_basket import find_baskets
from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.metrics import check_ranks, target_ranks
from rec2pm_jax.evaluation.targets import Targets, distinct_reads, target_items

# Makes histories, int [n] each, the scores [histories, V] of each of several heuristics.
Score = Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]]
_CELLS = 1 << 20  # scores ranked at a time


class _Reads(NamedTuple):
    """Some of the targets, with the histories that they are predicted from.

    Attributes:
      part: of the targets.
      known: item ids of each distinct history.
      read: int64 [targets of the part], the history of each.
      excluded: bool [histories, V], items of the current basket; None if the request time is not known.
    """

    part: slice
    known: list[np.ndarray]
    read: np.ndarray
    excluded: np.ndarray | None


def rank_by(
    score: Score,
    histories: Histories,
    targets: Targets,
    num_items: int,
    request_time_known: bool,
) -> np.ndarray:
    """Return the pessimistic rank of each target by each of several scores.

    Args:
      score: of the heuristics.
      histories: the events of the users.
      targets: the events to rank.
      num_items: items, without padding.
      request_time_known: whether the items of the current basket are left out.

    Returns:
      int64 [heuristics, T].
    """
    item = target_items(histories, targets)
    ranks = []
    for part, known, read, excluded in _reads(histories, targets, num_items, request_time_known):
        left_out = None if excluded is None else excluded[read]
        ranks.append([target_ranks(s[read], item[part], left_out) for s in score(known)])
    return check_ranks(np.concatenate(ranks, axis=1))


def recommend_by(
    score: Score,
    histories: Histories,
    targets: Targets,
    num_items: int,
    request_time_known: bool,
    k: int,
) -> np.ndarray:
    """Return the best items of each of `targets.distinct_reads`; of equal scores the lower id first.

    Args:
      score: of one heuristic; others as for `rank_by`.
      histories, targets, num_items, request_time_known: as for `rank_by`.
      k: places of a list.

    Returns:
      int32 [L, k], best first; 0 in places that no item is left for.
    """
    first = distinct_reads(targets)
    targets = Targets(*(field[first] for field in targets))
    lists = np.zeros((len(first), k), np.int32)
    for part, known, read, excluded in _reads(histories, targets, num_items, request_time_known):
        (scores,) = score(known)
        scores = np.array(scores, np.float64)
        scores[:, 0] = -np.inf
        if excluded is not None:
            scores[excluded] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, num_items)]
        best = np.where(np.take_along_axis(scores, best, axis=1) > -np.inf, best, 0)
        lists[part, : best.shape[1]] = best[read]
    return lists


def _reads(
    histories: Histories, targets: Targets, num_items: int, request_time_known: bool
) -> Iterator[_Reads]:
    """Cut the targets into parts. Targets of a set share their scores."""
    start = _basket_starts(histories, targets) if request_time_known else targets.position
    chunk = max(1, _CELLS // (num_items + 1))
    for begin in range(0, len(start), chunk):
        part = slice(begin, begin + chunk)
        reads = np.stack([targets.user[part], targets.position[part], start[part]], axis=1)
        reads, read = np.unique(reads, axis=0, return_inverse=True)
        known = [histories.ids[histories.offsets[user] :][:n] for user, n, _ in reads]
        excluded = None
        if request_time_known:
            excluded = np.zeros((len(reads), num_items + 1), bool)
            for row, ids, first in zip(excluded, known, reads[:, 2], strict=True):
                row[ids[first:]] = True
        yield _Reads(part, known, read.reshape(-1), excluded)


def _basket_starts(histories: Histories, targets: Targets) -> np.ndarray:
    """Return the position of the first event with the time of each target: int64 [T]."""
    begins = find_baskets(histories.offsets, np.asarray(histories.times))
    user_start = histories.offsets[targets.user]
    basket = np.searchsorted(begins, user_start + targets.event, side="right") - 1
    return begins[basket] - user_start
