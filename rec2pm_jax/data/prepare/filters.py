"""Part of stage 2: the filters, and the item ids.

The filter rule: first drop every event of an item that has fewer than `min_item_count` events. Then
drop every user left with fewer than `min_user_events` events, and repeat, because items lose the
events of these users. Only whole items and whole users are dropped. So a round is one pass that
counts, and memory is one number per user and item.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare.column_files import ColumnFiles
from rec2pm_jax.data.schema import CONTENT_COLUMNS
from rec2pm_jax.errors import UserError

# Columns of an item table that say what an item is. The last two exist with `--items` only.
ITEM_FACTS = ("title", "category", *CONTENT_COLUMNS)
RULE = "repeat: drop items below min_item_count, then users below min_user_events; until stable"


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which events a dataset keeps.

    Attributes:
      min_item_count: fewest events of an item.
      min_user_events: fewest events of a user.
      keep_dropped: whether dropped events are kept apart, for logs that are appended later.
    """

    min_item_count: int
    min_user_events: int
    keep_dropped: bool = False

    @classmethod
    def of(cls, options: PrepareOptions) -> Filters:
        """Return the filters that the options ask for.

        Raises:
          UserError: a threshold is negative.
        """
        for flag in ("min_item_count", "min_user_events"):
            if getattr(options, flag) < 0:
                raise UserError(f"--{flag} must be >= 0, got {getattr(options, flag)}.")
        return cls(options.min_item_count, options.min_user_events, options.keep_dropped)


class EventCounts(NamedTuple):
    """Events that remain after the filters.

    Attributes:
      users: int64 [codes], remaining events of each user; 0 for a dropped user.
      items: int64 [codes], remaining events of each item; 0 for a dropped item.
      dropped: events dropped, by the name of the threshold.
    """

    users: np.ndarray
    items: np.ndarray
    dropped: dict[str, int]


def apply_filters(
    events: ColumnFiles,
    filters: Filters,
    known_users: np.ndarray,
    known_items: np.ndarray,
    rows: int,
    advice: str = "lower them",
) -> EventCounts:
    """Count the events that remain after the filters.

    Args:
      events: an encoded log.
      filters: the thresholds.
      known_users: bool [codes], users that stay whatever their counts.
      known_items: bool [codes], items that stay whatever their counts.
      rows: events to read at a time.
      advice: what to do when no event remains, for the error.

    Returns:
      The remaining events of each user and item.

    Raises:
      UserError: no event remains.
    """
    keep_user, keep_item = np.ones_like(known_users), np.ones_like(known_items)
    dropped = {"min_item_count": 0, "min_user_events": 0}
    while True:
        by_user, by_item = _count_events(events, keep_user, keep_item, rows)
        rare = keep_item & ~known_items & (by_item < filters.min_item_count)
        if rare.any():
            dropped["min_item_count"] += int(by_item[rare].sum())
            keep_item &= ~rare
            by_user, by_item = _count_events(events, keep_user, keep_item, rows)
        short = keep_user & ~known_users & (by_user < filters.min_user_events)
        lost = int(by_user[short].sum())
        keep_user &= ~short
        if not lost:
            break
        dropped["min_user_events"] += lost
    if not by_user.any():
        raise UserError(
            f"None of the {len(events)} events is left after "
            f"--min_item_count={filters.min_item_count} and "
            f"--min_user_events={filters.min_user_events}; {advice}."
        )
    return EventCounts(by_user, by_item, dropped)


def _count_events(
    events: ColumnFiles, keep_user: np.ndarray, keep_item: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count the events per user and per item whose user and item are both kept."""
    by_user, by_item = np.zeros(len(keep_user), np.int64), np.zeros(len(keep_item), np.int64)
    all_kept = keep_user.all() and keep_item.all()
    for chunk in events.chunks(rows, ("user", "item")):
        user, item = chunk["user"], chunk["item"]
        if not all_kept:
            stays = keep_user[user] & keep_item[item]
            user, item = user[stays], item[stays]
        by_user += np.bincount(user, minlength=len(by_user))
        by_item += np.bincount(item, minlength=len(by_item))
    return by_user, by_item


def number_items(counts: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """Return the item table, with ids by descending count; equal counts go by raw id in UTF-8 bytes.

    Args:
      counts: item (string, unique) and count (int64).
      titles: as `schema.Interactions.items`.

    Returns:
      id (int32, contiguous from 1), raw_id, count (int64) and those of `ITEM_FACTS` that `titles` has.
    """
    table = (
        counts.sort(["count", "item"], descending=[True, False])
        .with_row_index("id", offset=1)
        .with_columns(pl.col("id").cast(pl.Int32))
    )
    return table.join(titles, on="item", how="left", maintain_order="left").select(
        "id",
        pl.col("item").alias("raw_id"),
        "count",
        *(name for name in ITEM_FACTS if name in titles.columns),
    )


def merge_items(known: pl.DataFrame, found: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """Return known items with the counts of both, then new items as `number_items` orders them.

    Items that `--items` lists are items without events, too, and what it says of known ones counts.

    Args:
      known: an item table.
      found: item and count of items with events.
      titles: as `schema.Interactions.items`.
    """
    listed = titles.head(0)
    if "listed" in titles.columns:
        listed = titles.filter("listed")
        without = listed.select("item", count=pl.lit(0, pl.Int64))
        without = without.filter(~pl.col("item").is_in(found["item"].to_list()))
        found = pl.concat([found, without])
    fresh = found.filter(~pl.col("item").is_in(known["raw_id"].to_list()))
    fresh = number_items(fresh, titles).with_columns(pl.col("id") + known.height)
    more = found.rename({"item": "raw_id", "count": "more"})
    both = known.join(more, on="raw_id", how="left", maintain_order="left")
    both = both.with_columns(pl.col("count") + pl.col("more").fill_null(0)).drop("more")
    facts = [name for name in ITEM_FACTS if name in listed.columns]
    news = listed.select(raw_id="item", **{f"new_{name}": name for name in facts})
    both = both.join(news, on="raw_id", how="left", maintain_order="left")
    both = both.with_columns(
        pl.coalesce(f"new_{name}", *({name} & set(known.columns))).alias(name) for name in facts
    ).drop(f"new_{name}" for name in facts)
    return pl.concat([both, fresh.with_columns(pl.col("id").cast(pl.Int32))], how="diagonal")


def empty_item_table() -> pl.DataFrame:
    """Return an item table without rows."""
    return pl.DataFrame(
        schema={
            "id": pl.Int32,
            "raw_id": pl.String,
            "count": pl.Int64,
            "title": pl.String,
            "category": pl.String,
        }
    )
