"""Whole user sequences in flat arrays, how events are put in order, and the content hash."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data.hashing import hash_strings, mix
from rec2pm_jax.errors import UserError

MAX_EVENT_TYPES = 127  # type ids are stored as int8

TIE_RULES = {
    "shuffle": "events of a user with equal timestamps are ordered by a hash of "
    "(seed, user, time, item, occurrence), independent of the order of the input",
    "keep": "events of a user with equal timestamps keep the order of the input",
}


class Histories(NamedTuple):
    """All sequences of a dataset, users in the order of their raw ids' UTF-8 bytes.

    Attributes:
      users: raw user ids, length U.
      offsets: int64 [U + 1]; user u has events [offsets[u], offsets[u + 1]).
      ids: int32 [E] item ids from 1.
      times: int64 [E] timestamps as the source gave them (seconds, or ranks).
      types: int8 [E] event-type ids from 1, or None.
    """

    users: list[str]
    offsets: np.ndarray
    ids: np.ndarray
    times: np.ndarray
    types: np.ndarray | None

    @property
    def lengths(self) -> np.ndarray:
        """int32 [U], events per user."""
        return np.diff(self.offsets).astype(np.int32)


def build_histories(
    events: pl.DataFrame, items: pl.DataFrame, ties: str, seed: int
) -> tuple[Histories, list[str]]:
    """Orders canonical events into sequences.

    Args:
      events: canonical events (see `schema.Interactions`), filtered.
      items: the item table of `filters.vocabulary`.
      ties: a key of `TIE_RULES`.
      seed: seed of the tie hash.

    Returns:
      The histories and the names of the event types (type id = position + 1; empty without types).

    Raises:
      UserError: more than 127 event types.
    """
    users = events["user"].unique().sort()
    user_table = pl.DataFrame({"user": users}).with_row_index("u")
    item_table = items.select(pl.col("raw_id").alias("item"), pl.col("id"))
    keys = ["u", "timestamp"]
    columns = ["u", "id", "timestamp"]
    coded = events.with_row_index("row").join(user_table, on="user").join(item_table, on="item")
    event_types: list[str] = []
    if "event_type" in events.columns:
        event_types = events["event_type"].unique().sort().to_list()
        if len(event_types) > MAX_EVENT_TYPES:
            raise UserError(
                f"{len(event_types)} event types, but at most {MAX_EVENT_TYPES} can be stored; "
                "choose another --type_column."
            )
        type_table = pl.DataFrame({"event_type": event_types}).with_row_index("type", offset=1)
        coded = coded.join(type_table, on="event_type")
        columns.append("type")
    if ties == "keep":
        coded = coded.sort([*keys, "row"]).select(columns)
    else:
        # Rows that agree on everything sorted by here are interchangeable, so the occurrence number
        # (and with it the hash) does not depend on the order of the input.
        coded = coded.select(columns).sort([*keys, "id", *columns[3:]])
        tie = _tie_hashes(coded, users, items["raw_id"], seed)
        coded = coded.with_columns(tie=pl.Series(tie)).sort([*keys, "tie"], maintain_order=True)
    counts = np.bincount(coded["u"].to_numpy(), minlength=len(users))
    types = coded["type"].to_numpy().astype(np.int8) if event_types else None
    histories = Histories(
        users=users.to_list(),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=coded["id"].to_numpy().astype(np.int32),
        times=coded["timestamp"].to_numpy().astype(np.int64),
        types=types,
    )
    return histories, event_types


def _tie_hashes(coded: pl.DataFrame, users: pl.Series, items: pl.Series, seed: int) -> np.ndarray:
    """uint64 [E] hash of (seed, user, time, item, occurrence); `coded` is sorted by u, time, id."""
    u, time, item = (coded[name].to_numpy() for name in ("u", "timestamp", "id"))
    starts = np.ones(len(u), bool)
    starts[1:] = (u[1:] != u[:-1]) | (time[1:] != time[:-1]) | (item[1:] != item[:-1])
    positions = np.arange(len(u))
    occurrence = positions - np.maximum.accumulate(np.where(starts, positions, 0))
    return mix(seed, hash_strings(users)[u], time, hash_strings(items)[item - 1], occurrence)


def content_hash(
    histories: Histories, items: pl.DataFrame, event_types: list[str], has_times: bool
) -> str:
    """sha256 (hex) over the logical content: every user's sequence and the item table.

    It does not depend on shards, workers or, with ties shuffled, the order of the input rows.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([event_types, has_times, histories.types is not None]).encode())
    digest.update(json.dumps(histories.users).encode())
    digest.update(histories.offsets.astype("<i8").tobytes())
    digest.update(histories.ids.astype("<i4").tobytes())
    digest.update(histories.times.astype("<i8").tobytes())
    if histories.types is not None:
        digest.update(histories.types.tobytes())
    for column in ("id", "raw_id", "count", "title", "category"):
        digest.update(json.dumps(items[column].to_list()).encode())
    return digest.hexdigest()
