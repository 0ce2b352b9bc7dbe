"""Histories of a dataset and its deltas as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.data.histories import Histories
from rec2pm_jax.data.ordering import order_events


def merge(
    parts: list[Histories], users: list[str], raw_items: Sequence[str], ties: str, seed: int
) -> Histories:
    """Puts the events of every user of `users` in order of time, late ones included.

    Events of equal time follow the rule for ties, as if they had come together; with "keep", and so
    where a finer key than seconds was used, those of an earlier part come first.

    Args:
      parts: the dataset, then its deltas.
      users: raw ids in the order of the result.
      raw_items: raw id of every item id from 1.
    """
    index = {user: i for i, user in enumerate(users)}
    owners = [
        np.repeat(np.array([index[user] for user in part.users], np.int64), part.lengths)
        for part in parts
    ]
    lengths = np.bincount(np.concatenate(owners), minlength=len(users))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    touched = np.zeros(len(users), bool)
    for owner in owners[1:]:
        touched[owner] = True
    names = ("ids", "times") + (("types",) if parts[-1].types is not None else ())
    merged = {name: np.empty(offsets[-1], getattr(parts[-1], name).dtype) for name in names}
    # Users without new events keep their sequences; only the others are ordered again.
    base, owner = parts[0], owners[0]
    still = np.flatnonzero(~touched[owner])
    first = np.zeros(len(users), np.int64)
    first[[index[user] for user in base.users]] = base.offsets[:-1]
    place = offsets[owner[still]] + still - first[owner[still]]
    for name in names:
        merged[name][place] = getattr(base, name)[still]
    moving = [np.flatnonzero(touched[owner]) for owner in owners]

    def gathered(name: str) -> np.ndarray:
        return np.concatenate(
            [getattr(p, name)[rows] for p, rows in zip(parts, moving, strict=True)]
        )

    events = {
        "user": np.concatenate([o[rows] for o, rows in zip(owners, moving, strict=True)]),
        "item": gathered("ids") - 1,
        "time": gathered("times"),
    }
    if "types" in names:
        events["type"] = gathered("types")
    rows = order_events(events, ties, seed, hash_strings(users), hash_strings(raw_items)).rows
    user = events["user"][rows]
    starts = np.cumsum(np.where(touched, lengths, 0)) - lengths
    place = offsets[user] + np.arange(len(rows)) - starts[user]
    for name, values in (("ids", events["item"] + 1), ("times", events["time"])):
        merged[name][place] = values[rows]
    if "types" in names:
        merged["types"][place] = events["type"][rows]
    return Histories(users, offsets, merged["ids"], merged["times"], merged.get("types"))
