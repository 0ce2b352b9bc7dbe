"""Linear probe: can the archived items be read off the memory?

A memory may differ between users without saying what they did. The probe asks how much of the
differences between users' archived item frequencies a ridge regression from the memory explains, on
users it was not fitted to.
"""

from __future__ import annotations

import numpy as np

from rec2pm_jax.evaluate.targets import Histories, Rows

_RIDGE = 10.0  # on standardised inputs, in users: a few per cent of a thousand users


def archived_frequencies(histories: Histories, rows: Rows, num_items: int, segment: int):
    """Square roots of the item frequencies folded into each row's memory: float32 [R, num_items].

    The roots make differences of Hellinger distance, so that the one most frequent item of everybody
    does not decide the outcome.
    """
    result = np.zeros((len(rows.user), num_items), np.float32)
    first = histories.offsets[rows.user] + rows.first_segment * segment
    for row, (start, count) in enumerate(zip(first, rows.updates * segment, strict=True)):
        ids = histories.ids[start : start + count]
        np.add.at(result[row], ids - 1, 1.0 / max(count, 1))
    return np.sqrt(result, out=result)


def linear_probe(memory: np.ndarray, wanted: np.ndarray) -> float | None:
    """Share of the variance of `wanted` explained on held-out users; two-fold, ridge regression.

    Args:
      memory: float [U, N], a row per user. wanted: float [U, V].

    Returns:
      1 - residual / variance, at most 1 and below 0 where the mean of the other half does better;
      None with fewer than four users.
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
