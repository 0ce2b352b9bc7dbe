"""Heuristic rankings that every table shows: popularity and personal frequency.

Personal frequency scores an item by how often the user chose it,

    score(v) = sum over own events e of item v of 2^(-age(e) / half_life) + TIE * popularity(v),

over the last `window` events or all of them. `age` counts events (0 for the newest), the simplest
form of exponential time decay. Half_life 0 leaves plain counts. The small popularity term orders items
that tie, above all those that the user never chose.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# Below any difference of counts; with decay, events older than 20 half-lives weigh less than it.
TIE = 1e-6


def training_popularity(training_ids: Iterable[np.ndarray], num_items: int) -> np.ndarray:
    """Count each item over the users' training events.

    Args:
      training_ids: int [n] per user, ids from 1 of the events before the user's `train_end`.
      num_items: items; the table has num_items + 1 rows.

    Returns:
      float64 [V], counts divided by the largest (so in [0, 1]); row 0 is padding.
    """
    counts = np.zeros(num_items + 1)
    for ids in training_ids:
        counts += np.bincount(ids, minlength=num_items + 1)
    return counts / max(1.0, counts.max())


def personal_frequency(
    history: np.ndarray, popularity: np.ndarray, *, window: int = 0, half_life: float = 0.0
) -> np.ndarray:
    """Score the catalogue for one user.

    >>> popularity = training_popularity([np.array([1, 2, 2])], num_items=3)
    >>> personal_frequency(np.array([3, 3, 1]), popularity).round(3).tolist()
    [0.0, 1.0, 0.0, 2.0]

    Args:
      history: int [n], the user's events in order. Without events the result ranks by popularity.
      popularity: float [V] in [0, 1], see `training_popularity`.
      window: newest events that count; 0 for all.
      half_life: events after which an event weighs half; 0 for no decay.

    Returns:
      float64 [V].
    """
    recent = history[-window:] if window else history
    weights = None
    if half_life:
        weights = 0.5 ** (np.arange(len(recent) - 1, -1, -1) / half_life)
    return np.bincount(recent, weights, minlength=len(popularity)) + TIE * popularity
