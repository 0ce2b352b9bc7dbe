"""Filters and the vocabulary.

The filter rule, iterated until nothing changes: first drop every event of an item that has fewer
than `min_item_count` events, then drop every user left with fewer than `min_user_events` events
(whose items lose those counts, hence the iteration). Only whole items and whole users go, so an
iteration is a pass over the coded log that counts: memory is one number per user and item.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data.columns import ColumnFiles
from rec2pm_jax.errors import UserError

RULE = "repeat: drop items below min_item_count, then users below min_user_events; until stable"


class Kept(NamedTuple):
    """What stays: events of users and items whose counts are positive.

    Attributes:
      users, items: int64 [codes], events that stay of each; 0 for who goes.
      dropped: events dropped, by the name of the threshold.
    """

    users: np.ndarray
    items: np.ndarray
    dropped: dict[str, int]


def check_thresholds(min_item_count: int, min_user_events: int) -> None:
    """Raises UserError for a negative threshold."""
    for flag, value in (("min_item_count", min_item_count), ("min_user_events", min_user_events)):
        if value < 0:
            raise UserError(f"--{flag} must be >= 0, got {value}.")


def apply_filters(
    events: ColumnFiles,
    known_users: np.ndarray,
    known_items: np.ndarray,
    min_item_count: int,
    min_user_events: int,
    rows: int,
    advice: str = "lower them",
) -> Kept:
    """Applies the rule to coded events, read `rows` at a time.

    Args:
      known_users, known_items: bool [codes], those that stay whatever their counts.
      advice: what to do where nothing is left.

    Raises:
      UserError: no event is left.
    """
    keep_user, keep_item = np.ones_like(known_users), np.ones_like(known_items)
    dropped = {"min_item_count": 0, "min_user_events": 0}
    while True:
        by_user, by_item = _count(events, keep_user, keep_item, rows)
        rare = keep_item & ~known_items & (by_item < min_item_count)
        if rare.any():
            dropped["min_item_count"] += int(by_item[rare].sum())
            keep_item &= ~rare
            by_user, by_item = _count(events, keep_user, keep_item, rows)
        short = keep_user & ~known_users & (by_user < min_user_events)
        lost = int(by_user[short].sum())
        keep_user &= ~short
        if not lost:
            break
        dropped["min_user_events"] += lost
    if not by_user.any():
        raise UserError(
            f"None of the {len(events)} events is left after --min_item_count={min_item_count} and "
            f"--min_user_events={min_user_events}; {advice}."
        )
    return Kept(by_user, by_item, dropped)


def _count(
    events: ColumnFiles, keep_user: np.ndarray, keep_item: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Events per user and per item, of those whose user and item are kept."""
    by_user, by_item = np.zeros(len(keep_user), np.int64), np.zeros(len(keep_item), np.int64)
    everything = keep_user.all() and keep_item.all()
    for chunk in events.chunks(rows, ("user", "item")):
        user, item = chunk["user"], chunk["item"]
        if not everything:
            stays = keep_user[user] & keep_item[item]
            user, item = user[stays], item[stays]
        by_user += np.bincount(user, minlength=len(by_user))
        by_item += np.bincount(item, minlength=len(by_item))
    return by_user, by_item


def vocabulary(counts: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """The item table: id (int32, contiguous from 1), raw_id, count (int64), title, category.

    Ids go by descending count, equal counts by raw id in the order of UTF-8 bytes.

    Args:
      counts: item (string, unique), count (int64).
      titles: `schema.Interactions.items`.
    """
    table = (
        counts.sort(["count", "item"], descending=[True, False])
        .with_row_index("id", offset=1)
        .with_columns(pl.col("id").cast(pl.Int32))
    )
    return table.join(titles, on="item", how="left", maintain_order="left").select(
        "id", pl.col("item").alias("raw_id"), "count", "title", "category"
    )
