"""The order of a user's events, equal times included."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rec2pm_jax.data.hashing import mix

# Part of every dataset.json, so these texts must not change.
TIE_RULES = {
    "shuffle": "events of a user with equal timestamps are ordered by a hash of "
    "(seed, user, time, item, occurrence), independent of the order of the input",
    "keep": "events of a user with equal timestamps keep the order of the input",
}


class EventOrder(NamedTuple):
    """The order of events.

    Attributes:
      rows: int64 [n], indices of the events in their order.
      duplicates: how many events repeat another one in every column.
    """

    rows: np.ndarray
    duplicates: int


def order_events(
    events: dict[str, np.ndarray],
    ties: str,
    seed: int,
    user_hash: np.ndarray,
    item_hash: np.ndarray,
) -> EventOrder:
    """Order events by user, time, fraction and order (if present), then by the rule for ties.

    Args:
      events: columns user, item and time, and optionally type, fraction and order, [n]
        each.
      ties: a key of `TIE_RULES`.
      seed: seed of the tie hash.
      user_hash: uint64, hashes of the raw ids that the column user indexes.
      item_hash: uint64, hashes of the raw ids that the column item indexes.

    Returns:
      The order and the number of duplicates.
    """
    keys = [events[name] for name in ("user", "time", "fraction", "order") if name in events]
    rest = [events[name] for name in ("item", "type") if name in events]
    # Rows that agree in all columns are interchangeable. So the occurrence number, and with it the
    # hash, does not depend on the order of the input.
    rows = argsort(*keys, *rest)
    same = _equals_previous(keys, rows)  # in user, time, fraction and order
    same_item = same & _equals_previous(rest[:1], rows)
    duplicates = int(np.sum(same_item & _equals_previous(rest[1:], rows)))
    if ties == "keep":
        return EventOrder(argsort(*keys), duplicates)
    tied = same.copy()
    tied[:-1] |= same[1:]
    places = np.flatnonzero(tied)
    if len(places):
        positions = np.arange(len(rows))
        occurrence = positions - np.maximum.accumulate(np.where(same_item, 0, positions))
        moved = rows[places]
        tie_hash = mix(
            seed,
            user_hash[events["user"][moved]],
            events["time"][moved],
            item_hash[events["item"][moved]],
            occurrence[places],
        )
        group = np.cumsum(~same)[places]
        rows[places] = moved[np.lexsort((tie_hash, group))]
    return EventOrder(rows, duplicates)


def argsort(*keys: np.ndarray) -> np.ndarray:
    """Return a stable argsort by several integer keys, the first one first.

    Keys are packed into as few 64-bit numbers as their ranges allow. One sort takes a fifth of the
    time of `np.lexsort` over three keys.

    Args:
      *keys: integer arrays [n].

    Returns:
      int64 [n].

    >>> argsort(np.array([2, 1, 1]), np.array([0, 5, 4]))
    array([2, 1, 0])
    """
    packed: list[np.ndarray] = []
    room = 0
    for key in keys:
        low, high = (int(key.min()), int(key.max())) if len(key) else (0, 0)
        bits = (high - low).bit_length()
        value = key.astype(np.uint64) - np.uint64(low & 0xFFFFFFFFFFFFFFFF)
        if packed and bits <= room:
            packed[-1] = (packed[-1] << np.uint64(bits)) | value
            room -= bits
        else:
            packed.append(value)
            room = 64 - bits
    if len(packed) == 1:
        return np.argsort(packed[0], kind="stable")
    return np.lexsort(packed[::-1])


def _equals_previous(columns: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return whether each row equals the one before it in all `columns`: bool [n]."""
    same = np.ones(len(rows), bool)
    same[:1] = False
    for column in columns:
        ordered = column[rows]
        same[1:] &= ordered[1:] == ordered[:-1]
    return same
