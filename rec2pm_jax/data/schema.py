"""Canonical interactions: the common schema that every source returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import polars as pl

from rec2pm_jax.errors import UserError

EVENT_COLUMNS = {"user": pl.String, "item": pl.String, "timestamp": pl.Int64}
OPTIONAL_EVENT_COLUMNS = {"event_type": pl.String, "fraction": pl.Int64, "order": pl.Int64}
ITEM_COLUMNS: dict[str, pl.DataType | type[pl.DataType]]
ITEM_COLUMNS = {"item": pl.String, "title": pl.String, "category": pl.String}
# What `--items` adds to the table of a dataset, see `data/item_table.py`.
CONTENT_COLUMNS: dict[str, pl.DataType | type[pl.DataType]]
CONTENT_COLUMNS = {"attributes": pl.List(pl.String), "vector": pl.List(pl.Float32)}


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Events and items that a source returns.

    One row of `events` is one interaction, in these columns:

        user, item    string, never null or empty
        timestamp     int64 seconds since 1970; any order key when `has_times` is false
        event_type    string, optional
        fraction      int64, optional; nanoseconds after `timestamp`
        order         int64, optional; orders a user's events of equal time, before `ties` does

    `order` carries a line number or position that the log states. Sources may put a fraction of a
    second there, too, if they use one of the two columns only. All frames have the same columns; some
    may be empty. Rows may come in any order. The order of rows matters only with `ties` = "keep",
    among a user's events of equal time and order.

    Attributes:
      events: one frame, or an iterable of frames for a log that may not fit in memory. It is read
        once.
      items: item (string, unique), title and category (strings or null), or a function that returns
        this table, called after the last frame. Items that are missing here have no title and no
        category. It may have `CONTENT_COLUMNS` and `listed`, see `item_table.describe_items`. Items
        without an event are ignored, unless they are listed.
      item_level: what an item is, for example "product_type".
      has_times: whether timestamps are real seconds since 1970 rather than ranks.
      ties: the source's own rule for equal timestamps of a user, "shuffle" or "keep".
      dropped: rows that the source left out, by reason. Read after the last frame, so that a source
        may count while it reads.
      notes: other facts about the source for `dataset.json`. Read after the last frame.
      ground_truth: arrays that a synthetic source knows about its users, for `ground_truth.npz`.
    """

    events: pl.DataFrame | Iterable[pl.DataFrame]
    items: pl.DataFrame | Callable[[], pl.DataFrame]
    item_level: str = "item"
    has_times: bool = True
    ties: str = "shuffle"
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, object] = dataclasses.field(default_factory=dict)
    ground_truth: Mapping[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.items, pl.DataFrame):
            _check_items(self.items)

    def item_table(self) -> pl.DataFrame:
        """Return the items; to be called after the last frame.

        Raises:
          UserError: an item has several rows.
        """
        if isinstance(self.items, pl.DataFrame):
            return self.items
        table = self.items()
        _check_items(table)
        return table

    def frames(self) -> Iterator[pl.DataFrame]:
        """Yield the events, frame by frame, with the canonical columns in one order.

        Raises:
          TypeError: a frame lacks a column, has one of another type, or differs from the first.
        """
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


def _check_items(items: pl.DataFrame) -> None:
    _check_columns(items, ITEM_COLUMNS, "items")
    if items["item"].n_unique() != items.height:
        raise UserError("The item table has several rows for one item; keep one per item.")


def _check_columns(frame: pl.DataFrame, columns: Mapping, name: str) -> None:
    for column, dtype in columns.items():
        found = frame.schema.get(column)
        if found != dtype:
            raise TypeError(f"canonical {name} need a column {column} of {dtype}, got {found}")


def empty_items() -> pl.DataFrame:
    """Return an item table without rows, for sources that know nothing about their items."""
    return pl.DataFrame(schema=ITEM_COLUMNS)
