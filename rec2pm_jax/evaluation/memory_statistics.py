"""Statistics of the memories of many users: rank, similarity of slots, and a linear probe.

The linear probe asks whether the archived items can be read off the memory. A memory may differ
between users without saying what they did. The probe measures how much of the differences between
users' archived item frequencies a ridge regression from the memory explains, on held-out users.
"""

from __future__ import annotations

import numpy as np

from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.targets import Rows

_RIDGE = 10.0  # on standardised inputs, in users: a few per cent of a thousand users


def effective_rank(vectors: np.ndarray) -> float:
    """Return exp of the entropy of the normalised singular values (Roy and Vetterli 2007).

    Args:
      vectors: float [U, N]; their mean is removed first. Identical vectors have rank 0.

    >>> round(effective_rank(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), 6)
    2.0
    """
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    if values.sum() <= 1e-12 * max(1.0, np.abs(vectors).max()):
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def slot_cosine(memories: np.ndarray) -> float | None:
    """Return the mean cosine between two different slots of a user; None with a single slot.

    Args:
      memories: float [U, C, D].
    """
    slots = memories.shape[1]
    if slots < 2:
        return None
    norms = np.linalg.norm(memories, axis=2, keepdims=True)
    unit = memories / np.maximum(norms, 1e-12)
    cosines = np.einsum("ucd,ued->uce", unit, unit)
    return float(cosines[:, ~np.eye(slots, dtype=bool)].mean())


def archived_frequencies(
    histories: Histories, rows: Rows, num_items: int, segment: int
) -> np.ndarray:
    """Return the square roots of the item frequencies folded into each row's memory.

    Differences of square roots give the Hellinger distance, so that a single item that is frequent
    for every user does not decide the outcome.

    Args:
      histories: the events.
      rows: which events each memory has folded.
      num_items: number of items, without padding.
      segment: S, events per segment.

    Returns:
      float32 [R, num_items].
    """
    result = np.zeros((len(rows.user), num_items), np.float32)
    first = histories.offsets[rows.user] + rows.first_segment * segment
    for row, (start, count) in enumerate(zip(first, rows.updates * segment, strict=True)):
        ids = histories.ids[start : start + count]
        np.add.at(result[row], ids - 1, 1.0 / max(count, 1))
    return np.sqrt(result, out=result)


def linear_probe(memory: np.ndarray, wanted: np.ndarray) -> float | None:
    """Return the share of the variance of `wanted` that ridge regression explains, two-fold.

    Args:
      memory: float [U, N], one row per user.
      wanted: float [U, V].

    Returns:
      1 - residual / variance on held-out users; at most 1, and below 0 if the mean of the other
      half predicts better. None with fewer than four users, or without any variance.
    """
    users = len(memory)
    if users < 4:
        return None
    even = np.arange(users) % 2 == 0
    residual = variance = 0.0
    for fit in (even, ~even):
        centre, spread = memory[fit].mean(axis=0), memory[fit].std(axis=0) + 1e-12
        x, held_out = ((memory[part] - centre) / spread for part in (fit, ~fit))
        mean = wanted[fit].mean(axis=0)
        gram = x.T @ x + _RIDGE * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x.T @ (wanted[fit] - mean))
        residual += np.square(wanted[~fit] - mean - held_out @ weights).sum()
        variance += np.square(wanted[~fit] - mean).sum()
    return float(1 - residual / variance) if variance else None
