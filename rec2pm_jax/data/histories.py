"""Whole user sequences in flat arrays, and the content hash of a dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

_CHUNK = 1 << 20  # values that are text at a time


class Histories(NamedTuple):
    """Sequences of consecutive users of a dataset, end to end.

    Attributes:
      users: raw user ids, length U.
      offsets: int64 [U + 1]; user u has the events [offsets[u], offsets[u + 1]).
      ids: int32 [E] item ids from 1.
      times: int64 [E] timestamps as the source stated them (seconds, or ranks).
      types: int8 [E] event-type ids from 1, or None.
    """

    users: Sequence[str]
    offsets: np.ndarray
    ids: np.ndarray
    times: np.ndarray
    types: np.ndarray | None

    @property
    def lengths(self) -> np.ndarray:
        """Events per user, int32 [U]."""
        return np.diff(self.offsets).astype(np.int32)

    @property
    def newest_times(self) -> np.ndarray:
        """The time of each user's newest event, int64 [U]; every user has an event."""
        return self.times[self.offsets[1:] - 1]


class UserGroups(NamedTuple):
    """Groups of consecutive users with about equally many events.

    Attributes:
      firsts: int64 [G + 1]; group g has the users [firsts[g], firsts[g + 1]).
      group_of_user: int64 [U].
    """

    firsts: np.ndarray
    group_of_user: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """The user after the last one of each group, int64 [G]."""
        return self.firsts[1:]


def group_users(lengths: np.ndarray, events: int) -> UserGroups:
    """Cut consecutive users into groups of about `events` events.

    A user belongs to the group where its first event falls. So a group exceeds `events` by less than
    the events of one user.

    Args:
      lengths: int [U], events of each user.
      events: events per group.

    Returns:
      The groups; none of them is empty.

    >>> group_users(np.array([2, 2, 5, 1]), 4).firsts
    array([0, 2, 3, 4])
    """
    starts = np.cumsum(lengths) - lengths
    _, firsts, group_of_user = np.unique(starts // events, return_index=True, return_inverse=True)
    return UserGroups(np.append(firsts, len(lengths)), group_of_user)


def lengths_to_offsets(lengths: np.ndarray) -> np.ndarray:
    """Return where each user's events begin, and the number of all events: int64 [U + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _json_list(values: Sequence[Any] | pl.Series) -> Iterator[bytes]:
    """Yield the pieces of `json.dumps(list(values))`, some values at a time."""
    yield b"["
    for start in range(0, len(values), _CHUNK):
        text = json.dumps(list(values[start : start + _CHUNK]))[1:-1]
        yield (", " if start else "").encode() + text.encode()
    yield b"]"


def hash_content(
    users: Sequence[str] | pl.Series,
    lengths: np.ndarray,
    column: Callable[[str], Iterable[np.ndarray]],
    items: pl.DataFrame,
    event_types: list[str],
    has_times: bool,
) -> str:
    """Return the sha256 (hex) of the logical content: every user's sequence and the item table.

    It does not depend on shards or workers. With ties shuffled it does not depend on the order of
    the input rows either.

    Args:
      users: raw ids of all users in the order of the dataset.
      lengths: int [U], events of each.
      column: yields the parts of `ids`, `times` or `types` of all events in that order.
      items: the item table.
      event_types: names of the event types; empty without.
      has_times: whether times are real.

    Returns:
      64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([event_types, has_times, bool(event_types)]).encode())
    for text in _json_list(users):
        digest.update(text)
    digest.update(lengths_to_offsets(lengths).astype("<i8").tobytes())
    columns = {"ids": "<i4", "times": "<i8"} | ({"types": "i1"} if event_types else {})
    for name, dtype in columns.items():
        for part in column(name):
            digest.update(np.ascontiguousarray(part, dtype).data)
    for field in ("id", "raw_id", "count", "title", "category"):
        for text in _json_list(items[field]):
            digest.update(text)
    if "attributes" in items.columns:
        digest.update(json.dumps(items["attributes"].to_list()).encode())
        digest.update(json.dumps(items["vector"].list.len().to_list()).encode())
        numbers = items["vector"].drop_nulls().explode().to_numpy()
        digest.update(np.ascontiguousarray(numbers, "<f4").data)
    return digest.hexdigest()
