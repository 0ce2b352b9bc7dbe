"""Ranking metrics over the full catalogue: one target, ties pessimistic.

    rank = 1 + number of other items whose score is >= the target's
    hr@k = [rank <= k]      ndcg@k = [rank <= k] / log2(rank + 1)      mrr = 1 / rank

`set_metrics.py` defines all metrics, also for protocols that predict sets of items.

A model that gives every item the same score therefore ranks the target last, not first. Every part
of the project takes its metrics from this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.set_metrics import metric_names, set_metrics

AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)


def target_ranks(scores: AnyArray, targets: AnyArray, excluded: AnyArray | None = None) -> AnyArray:
    """Return the pessimistic rank of each target among all items.

    Works on numpy arrays and, inside `jit`, on jax arrays.

    Args:
      scores: float [B, V]; column 0 is padding and never counts, whatever it holds.
      targets: int [B], ids from 1.
      excluded: bool [B, V], items left out of the ranking, or None. An excluded target comes last.

    Returns:
      int [B], ranks from 1 to V - 1; 0 marks a row with a non-finite score, which `check_ranks`
      turns into an error on the host.

    >>> scores = np.array([[0.0, 3.0, 2.0, 2.0], [0.0, 1.0, 1.0, 1.0]])
    >>> target_ranks(scores, np.array([1, 1])).tolist()
    [1, 3]
    """
    items = scores[:, 1:]
    own = scores[np.arange(scores.shape[0]), targets]
    ahead = items >= own[:, None]  # the target counts itself: the "1 +"
    if excluded is not None:
        lost = excluded[np.arange(scores.shape[0]), targets]
        ahead = (ahead & ~excluded[:, 1:]) | lost[:, None]
    at_least = ahead.sum(axis=1)
    finite = (abs(items) < np.inf).all(axis=1)  # false for NaN too
    return at_least * finite.astype(at_least.dtype)


def check_ranks(ranks: np.ndarray) -> np.ndarray:
    """Return `ranks` if all are valid.

    Raises:
      UserError: some scores were NaN or infinite.
    """
    bad = int((ranks < 1).sum())
    if bad:
        raise UserError(
            f"{bad} of {ranks.size} targets have NaN or infinite scores; the parameters have "
            "diverged (lower the learning rate, or use an earlier checkpoint)."
        )
    return ranks


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return ndcg@k of each target: float64 in [0, 1]. The ideal DCG of a single target is 1.

    >>> ndcg(np.array([1, 3, 11]), 10).tolist()
    [1.0, 0.5, 0.0]
    """
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def summarize(
    ranks: np.ndarray,
    users: np.ndarray | None = None,
    *,
    sets: bool = False,
    cutoffs: Sequence[int] = (),
) -> dict[str, float]:
    """Return the mean over users of every metric, as fractions of 1.

    Every user has the same weight, even if a protocol gives some users more targets than others.

    Args:
      ranks: int [T], from 1.
      users: int [T], the user of each target; None if every target belongs to another user.
      sets: as for `user_metrics`.
      cutoffs: as for `user_metrics`.

    Returns:
      {metric: value}.

    Raises:
      ValueError: there are no targets.
      UserError: some scores were NaN or infinite.

    >>> means = summarize(np.array([1, 3, 20]), users=np.array([0, 0, 1]))
    >>> means["hr@10"], means["ndcg@10"]
    (0.5, 0.375)
    """
    if ranks.size == 0:
        raise ValueError("No targets: metrics of nothing are undefined.")
    check_ranks(ranks)
    users = np.arange(len(ranks)) if users is None else users
    values = user_metrics(ranks, users, sets=sets, cutoffs=cutoffs)
    return {name: float(value.mean()) for name, value in values.items()}


def user_metrics(
    ranks: np.ndarray, users: np.ndarray, *, sets: bool = False, cutoffs: Sequence[int] = ()
) -> dict[str, np.ndarray]:
    """Return every metric of each user.

    >>> user_metrics(np.array([1, 11, 3]), np.array([2, 2, 1]))["ndcg@10"]
    array([0.5, 0.5])

    Args:
      ranks: int [T], from 1.
      users: int [T], the user of each target.
      sets: whether a user's targets are one set, ranked once, see `set_metrics`. Otherwise each
        target is a set of its own, and a user's value is the mean over the user's targets.
      cutoffs: numbers k of places for which all families of metrics are returned, beside the names
        that every evaluation has.

    Returns:
      {metric: float64 [distinct users]}, ascending by user.
    """
    names = metric_names(sets, cutoffs)
    if sets:
        return set_metrics(ranks, users, names)
    values = set_metrics(ranks, np.arange(len(ranks)), names)
    return {name: user_means(value, users) for name, value in values.items()}


def user_means(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Return the mean of per-target values for each distinct user, in ascending order of user.

    Args:
      values: float [T].
      users: int [T], the user of each target.

    Returns:
      float64 [distinct users].

    >>> user_means(np.array([1.0, 0.0, 0.5]), np.array([7, 7, 2])).tolist()
    [0.5, 0.5]
    """
    _, group = np.unique(users, return_inverse=True)
    return np.bincount(group, weights=values) / np.bincount(group)
