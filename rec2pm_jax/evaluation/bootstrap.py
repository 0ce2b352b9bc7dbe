"""Percentile bootstrap over users (Efron and Tibshirani 1993, chapter 13).

Users are the unit of resampling because the targets of one user are not independent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_BLOCK = 1 << 22  # drawn indices held at a time


class Interval(NamedTuple):
    """A point estimate on the whole sample and the two ends of its percentile interval."""

    estimate: float
    low: float
    high: float


class PairedInterval(NamedTuple):
    """Intervals of mean(a) - mean(b) and of mean(a) / mean(b), over the same resamples."""

    difference: Interval
    ratio: Interval


def bootstrap(
    values: np.ndarray, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return the interval of the mean of one value per user.

    Args:
      values: float [U].
      resamples: number of bootstrap samples.
      seed: seed of the draws; equal seeds give equal intervals.
      level: coverage, between 0 and 1.

    Returns:
      The mean and its interval.

    Raises:
      ValueError: there are no users, or a value is not finite.

    >>> estimate, low, high = bootstrap(np.array([0.0, 0.5, 1.0, 1.0]))
    >>> estimate, low < estimate < high
    (0.625, True)
    """
    values = _checked(values)
    return _interval(values.mean(), _resampled_means(values, resamples, seed), level)


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> PairedInterval:
    """Return the intervals of the difference and the ratio of two means over the same users.

    Args:
      a: float [U], per-user means of one method.
      b: float [U], per-user means of the other method, same users in the same order.
      resamples: number of bootstrap samples.
      seed: seed of the draws; equal seeds give equal intervals.
      level: coverage, between 0 and 1.

    Returns:
      The intervals of mean(a) - mean(b) and of mean(a) / mean(b).

    Raises:
      ValueError: the lengths differ, there are no users, a value is not finite, or the mean of `b`
        is zero in the sample or in a resample.

    Example, with `Evaluation.user_ndcg` of two methods in mind:

    >>> ours, theirs = np.array([0.4, 0.2, 0.6, 0.5]), np.array([0.3, 0.2, 0.4, 0.4])
    >>> found = paired_bootstrap(ours, theirs)
    >>> round(found.difference.estimate, 3), found.difference.low > 0
    (0.1, True)
    >>> round(found.ratio.estimate, 3)
    1.308
    """
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape:
        raise ValueError(f"Paired samples must be of the same users, got {a.size} and {b.size}.")
    mean_a, mean_b = _resampled_means(np.stack([a, b]), resamples, seed)
    if not mean_b.all() or not b.mean():
        raise ValueError("The ratio is undefined: the mean of `b` is zero in some resample.")
    return PairedInterval(
        _interval(a.mean() - b.mean(), mean_a - mean_b, level),
        _interval(a.mean() / b.mean(), mean_a / mean_b, level),
    )


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return means of `values` [..., U] over draws of U users: float64 [..., resamples]."""
    rng = np.random.default_rng(seed)
    users = values.shape[-1]
    means = []
    block = max(1, _BLOCK // users)
    for begin in range(0, resamples, block):
        draws = rng.integers(0, users, (min(block, resamples - begin), users))
        means.append(values[..., draws].mean(axis=-1))
    return np.concatenate(means, axis=-1)


def _interval(estimate: float, samples: np.ndarray, level: float) -> Interval:
    """Return the percentile interval of `samples` around `estimate`."""
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(samples, [tail, 100.0 - tail])
    return Interval(float(estimate), float(low), float(high))


def _checked(values: np.ndarray) -> np.ndarray:
    """Return `values` as float64 [U]; raise ValueError unless they are one finite value per user."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"The bootstrap needs one finite value per user, got an array of shape {values.shape}."
        )
    return values
