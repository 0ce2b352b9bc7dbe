"""A dataset and the logs appended to it, read as one.

Each appended log is a delta: a directory `delta-NNNNN` with the sequences of the users who have new
events, and the whole item table after that log. `prepare/appending.py` writes deltas, and
`prepare/compaction.py` rewrites a dataset without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.event_order import order_events
from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.data.histories import Histories, lengths_to_offsets


def delta_paths(path: Path, deltas: int) -> list[Path]:
    """Return the directories of the first `deltas` deltas of the dataset in `path`."""
    return [path / f"delta-{n:05d}" for n in range(1, deltas + 1)]


def merge_users(users: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    """Return user and total length: the rows of `users` in their order, then the new ones of `more`.

    Args:
      users, more: tables with the columns user and length.
    """
    return (
        pl.concat([users.select("user", "length"), more.select("user", "length")])
        .group_by("user", maintain_order=True)
        .agg(pl.col("length").sum())
    )


def merge_histories(
    parts: list[Histories], users: list[str], raw_items: Sequence[str], ties: str, seed: int
) -> Histories:
    """Return the events of all parts, every user's in the order of time.

    Events of equal time follow the rule for ties, as if they came in one log. With "keep", events of
    an earlier part come first. The same holds where a finer key than seconds was used.

    Args:
      parts: the dataset, then its deltas.
      users: raw ids in the order of the result.
      raw_items: raw id of every item id from 1.
      ties, seed: as in `event_order.order_events`.

    Returns:
      The histories of `users`.
    """
    index = {user: i for i, user in enumerate(users)}
    owners = [
        np.repeat(np.array([index[user] for user in part.users], np.int64), part.lengths)
        for part in parts
    ]
    lengths = np.bincount(np.concatenate(owners), minlength=len(users))
    offsets = lengths_to_offsets(lengths)
    grown = np.zeros(len(users), bool)  # users with events in a delta
    for owner in owners[1:]:
        grown[owner] = True
    names = ("ids", "times") + (("types",) if parts[-1].types is not None else ())
    merged = {name: np.empty(offsets[-1], getattr(parts[-1], name).dtype) for name in names}
    # Users without new events keep their sequences. Only the others are ordered again.
    base, owner = parts[0], owners[0]
    unchanged = np.flatnonzero(~grown[owner])
    first = np.zeros(len(users), np.int64)
    first[[index[user] for user in base.users]] = base.offsets[:-1]
    place = offsets[owner[unchanged]] + unchanged - first[owner[unchanged]]
    for name in names:
        merged[name][place] = getattr(base, name)[unchanged]
    changed = [np.flatnonzero(grown[owner]) for owner in owners]

    def gather(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([a[rows] for a, rows in zip(arrays, changed, strict=True)])

    columns = {name: gather([getattr(part, name) for part in parts]) for name in names}
    events = {"user": gather(owners), "item": columns["ids"] - 1, "time": columns["times"]}
    if "types" in names:
        events["type"] = columns["types"]
    rows = order_events(events, ties, seed, hash_strings(users), hash_strings(raw_items)).rows
    user = events["user"][rows]
    starts = np.cumsum(np.where(grown, lengths, 0)) - lengths
    place = offsets[user] + np.arange(len(rows)) - starts[user]
    for name in names:
        merged[name][place] = columns[name][rows]
    return Histories(users, offsets, merged["ids"], merged["times"], merged.get("types"))
