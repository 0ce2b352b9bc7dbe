"""Whole user sequences in flat arrays, and the content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl


class Histories(NamedTuple):
    """Sequences of consecutive users of a dataset.

    Attributes:
      users: raw user ids, length U.
      offsets: int64 [U + 1]; user u has events [offsets[u], offsets[u + 1]).
      ids: int32 [E] item ids from 1.
      times: int64 [E] timestamps as the source gave them (seconds, or ranks).
      types: int8 [E] event-type ids from 1, or None.
    """

    users: Sequence[str]
    offsets: np.ndarray
    ids: np.ndarray
    times: np.ndarray
    types: np.ndarray | None

    @property
    def lengths(self) -> np.ndarray:
        """int32 [U], events per user."""
        return np.diff(self.offsets).astype(np.int32)


def content_hash(
    users: Sequence[str],
    lengths: np.ndarray,
    column: Callable[[str], Iterable[np.ndarray]],
    items: pl.DataFrame,
    event_types: list[str],
    has_times: bool,
) -> str:
    """sha256 (hex) over the logical content: every user's sequence and the item table.

    It does not depend on shards, workers or, with ties shuffled, the order of the input rows.

    Args:
      users, lengths: all users in the order of the dataset, and their events.
      column: yields the parts of `ids`, `times` or `types` of all events in that order.
      items: the item table.
      event_types: names of the event types; empty without.
      has_times: whether times are real.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([event_types, has_times, bool(event_types)]).encode())
    digest.update(json.dumps(list(users)).encode())
    digest.update(np.concatenate([[0], np.cumsum(lengths)]).astype("<i8").tobytes())
    columns = {"ids": "<i4", "times": "<i8"} | ({"types": "i1"} if event_types else {})
    for name, dtype in columns.items():
        for part in column(name):
            digest.update(np.ascontiguousarray(part, dtype))
    for field in ("id", "raw_id", "count", "title", "category"):
        digest.update(json.dumps(items[field].to_list()).encode())
    return digest.hexdigest()
