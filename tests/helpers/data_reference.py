"""Preparation row by row in plain Python, the reference for the staged preparation."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import groupby

import numpy as np

from rec2pm_jax.data.hashing import hash_strings, mix

Row = tuple[str, str, int, str, int]  # user, item, time, type, order


def reference_hash(
    rows: list[Row],
    ties: str = "shuffle",
    seed: int = 0,
    min_item_count: int = 0,
    min_user_events: int = 0,
) -> str:
    """Return the content hash of a dataset with real times, event types and no titles."""
    rows = filtered(rows, min_item_count, min_user_events)
    counts = Counter(item for _, item, *_ in rows)
    items = sorted(counts, key=lambda item: (-counts[item], item.encode()))
    types = sorted({kind for *_, kind, _ in rows})
    users = sorted({user for user, *_ in rows}, key=str.encode)
    histories = [_ordered([row for row in rows if row[0] == u], ties, seed) for u in users]
    events = [row for history in histories for row in history]
    digest = hashlib.sha256()
    for value in ([types, True, True], users):
        digest.update(json.dumps(value).encode())
    offsets = np.cumsum([0, *map(len, histories)])
    ids = [items.index(item) + 1 for _, item, *_ in events]
    kinds = [types.index(kind) + 1 for *_, kind, _ in events]
    for values, dtype in (
        (offsets, "<i8"),
        (ids, "<i4"),
        ([time for _, _, time, *_ in events], "<i8"),
        (kinds, "i1"),
    ):
        digest.update(np.array(values, dtype).tobytes())
    nothing = [None] * len(items)
    for column in (
        list(range(1, len(items) + 1)),
        items,
        [counts[item] for item in items],
        nothing,
        nothing,
    ):
        digest.update(json.dumps(column).encode())
    return digest.hexdigest()


def filtered(rows: list[Row], min_item_count: int, min_user_events: int) -> list[Row]:
    """Apply the filter rule until nothing changes."""
    while True:
        items = Counter(item for _, item, *_ in rows)
        rows = [row for row in rows if items[row[1]] >= min_item_count]
        users = Counter(user for user, *_ in rows)
        kept = [row for row in rows if users[row[0]] >= min_user_events]
        if len(kept) == len(rows):
            return rows
        rows = kept


def _ordered(rows: list[Row], ties: str, seed: int) -> list[Row]:
    """Sort one user's rows by time and order, then as in the input or by the tie hash."""

    def when(row):
        return row[2], row[4]

    rows = sorted(rows, key=when)
    if ties == "keep":
        return rows
    result = []
    for _, tied in groupby(rows, when):
        seen: Counter = Counter()
        keyed = []
        for row in sorted(tied, key=lambda row: (row[1], row[3])):
            user, item, time, *_ = row
            hashes = hash_strings([user]), np.array([time]), hash_strings([item])
            keyed.append((mix(seed, *hashes, np.array([seen[item]]))[0], row))
            seen[item] += 1
        result += [row for _, row in sorted(keyed, key=lambda pair: pair[0])]
    return result
