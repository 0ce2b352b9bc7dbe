"""Canonical interactions: the one shape that every source maps its own schema to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import polars as pl

from rec2pm_jax.errors import UserError

EVENT_COLUMNS = {"user": pl.String, "item": pl.String, "timestamp": pl.Int64}
OPTIONAL_EVENT_COLUMNS = {"event_type": pl.String, "order": pl.Int64}
ITEM_COLUMNS = {"item": pl.String, "title": pl.String, "category": pl.String}


@dataclasses.dataclass(frozen=True)
class Interactions:
    """What a source returns.

    `events` is one frame or, for a log that may not fit in memory, an iterable of frames, which is
    gone through once. One row is one interaction:
      user, item: strings, never null or empty.
      timestamp: int64 seconds since 1970, or any order key when `has_times` is false.
      event_type: string, optional.
      order: int64, optional; orders events of a user with equal timestamps, before `ties` does. It
        carries what seconds cannot: milliseconds, or a line number the log itself states.
    All frames have the same columns; some may be empty. Rows may come in any order: it has a meaning
    only with `ties` = "keep", among events of a user equal in timestamp and order.

    Attributes:
      events: see above.
      items: item (string, unique), title and category (strings or null). Items that no event names
        are ignored; items absent from here have neither title nor category.
      item_level: what an item is, e.g. "product_type".
      has_times: whether timestamps are real seconds since 1970 rather than ranks.
      ties: how this source wants equal timestamps of a user ordered, "shuffle" or "keep".
      dropped: rows left out by the source, by reason.
      notes: anything else about the source that a reader of `dataset.json` should know.
        `dropped` and `notes` are read after the last frame, so that a source may fill them as it
        goes.
      ground_truth: arrays a synthetic source knows about its users; written to `ground_truth.npz`.
    """

    events: pl.DataFrame | Iterable[pl.DataFrame]
    items: pl.DataFrame
    item_level: str = "item"
    has_times: bool = True
    ties: str = "shuffle"
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, object] = dataclasses.field(default_factory=dict)
    ground_truth: Mapping[str, np.ndarray] | None = None

    def __post_init__(self):
        _check_columns(self.items, ITEM_COLUMNS, "items")
        if self.items["item"].n_unique() != self.items.height:
            raise UserError("The item table has several rows for one item; keep one per item.")

    def frames(self) -> Iterator[pl.DataFrame]:
        """The events, frame by frame, with exactly the canonical columns in one order."""
        frames = [self.events] if isinstance(self.events, pl.DataFrame) else self.events
        columns: list[str] | None = None
        for frame in frames:
            optional = {n: t for n, t in OPTIONAL_EVENT_COLUMNS.items() if n in frame.columns}
            _check_columns(frame, EVENT_COLUMNS | optional, "events")
            found = [*EVENT_COLUMNS, *optional]
            columns = columns or found
            if found != columns:
                raise TypeError(f"frames of canonical events differ: {found} after {columns}")
            yield frame.select(columns)


def _check_columns(frame: pl.DataFrame, columns: Mapping, name: str) -> None:
    for column, dtype in columns.items():
        found = frame.schema.get(column)
        if found != dtype:
            raise TypeError(f"canonical {name} need a column {column} of {dtype}, got {found}")


def no_items() -> pl.DataFrame:
    """An item table for sources that know nothing about their items."""
    return pl.DataFrame(schema=ITEM_COLUMNS)
