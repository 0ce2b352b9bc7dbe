"""Heuristic rankings that every table shows: popularity, personal frequency, counts and transitions.

Personal frequency scores an item by how often the user chose it,

    score(v) = sum over own events e of item v of 2^(-age(e) / half_life) + TIE * popularity(v),

over the last `window` events or all of them. `age` counts events (0 for the newest), the simplest
form of exponential time decay. Half_life 0 leaves plain counts. The small popularity term orders items
that tie, above all those that the user never chose.

Counts and transitions is a linear mix of three probabilities,

    score(v) = share of v among own events + a * share of v among all training events
               + b * P(v follows the user's last item),

the last one estimated on the training events of all users. With a = b = 0 it ranks as personal
frequency over the whole history does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Below any difference of counts; with decay, events older than 20 half-lives weigh less than it.
TIE = 1e-6
_PAIRS = 1 << 22  # pairs of events that are counted at a time


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
        np.add.at(counts, ids, 1)
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


class Transitions(NamedTuple):
    """How often each item follows each other, as sparse rows.

    Attributes:
      offsets: int64 [V + 1]; the items that follow item i are [offsets[i], offsets[i + 1]).
      items: int32 [P], ids.
      probabilities: float64 [P], of `items` given the item before; they add up to 1 in each row.
    """

    offsets: np.ndarray
    items: np.ndarray
    probabilities: np.ndarray

    def after(self, item: int) -> np.ndarray:
        """Return the probability of each item after `item`: float64 [V], all 0 if none followed."""
        row = slice(self.offsets[item], self.offsets[item + 1])
        dense = np.zeros(len(self.offsets) - 1)
        dense[self.items[row]] = self.probabilities[row]
        return dense


def training_transitions(training_ids: Iterable[np.ndarray], num_items: int) -> Transitions:
    """Count which item follows which over the users' training events.

    Memory grows with the number of distinct pairs, not with the square of the catalogue.

    >>> found = training_transitions([np.array([1, 2, 1, 3]), np.array([1, 2])], num_items=3)
    >>> found.after(1).round(3).tolist()
    [0.0, 0.0, 0.667, 0.333]

    Args:
      training_ids: int [n] per user, ids from 1 of the events before the user's `train_end`.
      num_items: items; a dense row has num_items + 1 columns.
    """
    size = num_items + 1
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    waiting: list[np.ndarray] = []
    waiting_pairs = 0
    for ids in training_ids:
        waiting.append(ids[:-1].astype(np.int64) * size + ids[1:])
        waiting_pairs += len(waiting[-1])
        if waiting_pairs >= _PAIRS:
            pairs, counts = _add_pairs(pairs, counts, waiting)
            waiting, waiting_pairs = [], 0
    pairs, counts = _add_pairs(pairs, counts, waiting)
    before = pairs // size
    totals = np.bincount(before, weights=counts, minlength=size)
    offsets = np.searchsorted(before, np.arange(size + 1))
    return Transitions(offsets, (pairs % size).astype(np.int32), counts / totals[before])


def _add_pairs(
    pairs: np.ndarray, counts: np.ndarray, new: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return distinct pairs, ascending, and their counts, after adding the pairs `new`."""
    found, found_counts = np.unique(np.concatenate([pairs[:0], *new]), return_counts=True)
    merged, place = np.unique(np.concatenate([pairs, found]), return_inverse=True)
    weights = np.concatenate([counts, found_counts])
    return merged, np.bincount(place, weights=weights, minlength=len(merged)).astype(np.int64)


def counts_and_transitions(
    history: np.ndarray,
    popularity: np.ndarray,
    transitions: Transitions,
    *,
    popularity_weight: float,
    transition_weight: float,
) -> np.ndarray:
    """Score the catalogue for one user.

    >>> ids = [np.array([1, 2, 2])]
    >>> popularity, transitions = training_popularity(ids, 3), training_transitions(ids, 3)
    >>> weights = {"popularity_weight": 0.3, "transition_weight": 0.3}
    >>> counts_and_transitions(np.array([3, 1]), popularity, transitions, **weights).round(3)
    array([0. , 0.6, 0.5, 0.5])

    Args:
      history: int [n], the user's events in order.
      popularity: float [V] in [0, 1], see `training_popularity`.
      transitions: see `training_transitions`.
      popularity_weight: a, weight of the share among all training events.
      transition_weight: b, weight of the transition from the last item.

    Returns:
      float64 [V].
    """
    own, following = own_and_following(history, popularity, transitions)
    return mix(own, popularity, following, popularity_weight, transition_weight)


def own_and_following(
    history: np.ndarray, popularity: np.ndarray, transitions: Transitions
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `mix` needs of one user: the own shares and the transitions from the last item.

    Arguments as in `counts_and_transitions`.

    Returns:
      float64 [V] each; all transitions are 0 without events.
    """
    own = personal_frequency(history, popularity) / max(1, len(history))
    return own, transitions.after(int(history[-1]) if len(history) else 0)


def mix(
    own: np.ndarray,
    popularity: np.ndarray,
    following: np.ndarray,
    popularity_weight: float,
    transition_weight: float,
) -> np.ndarray:
    """Return own shares + popularity_weight * shares of all + transition_weight * transitions.

    Args:
      own: float64 [.., V], see `own_and_following`.
      popularity: float64 [V], see `training_popularity`.
      following: float64 [.., V], see `own_and_following`.
      popularity_weight: a of `counts_and_transitions`.
      transition_weight: b of `counts_and_transitions`.

    Returns:
      float64 [.., V].
    """
    shares = popularity * (popularity_weight / max(1.0, popularity.sum()))
    return own + shares + transition_weight * following
