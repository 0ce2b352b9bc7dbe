"""Filters and the vocabulary.

The filter rule, iterated until nothing changes: first drop every event of an item that has fewer
than `min_item_count` events, then drop every user left with fewer than `min_user_events` events
(whose items lose those counts, hence the iteration).
"""

from __future__ import annotations

import polars as pl

from rec2pm_jax.errors import UserError

RULE = "repeat: drop items below min_item_count, then users below min_user_events; until stable"


def apply_filters(
    events: pl.DataFrame, min_item_count: int, min_user_events: int
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Returns the events that stay, in their order, and the dropped rows by reason.

    Raises:
      UserError: a negative threshold, no events to begin with or none left.
    """
    for flag, value in (("min_item_count", min_item_count), ("min_user_events", min_user_events)):
        if value < 0:
            raise UserError(f"--{flag} must be >= 0, got {value}.")
    if events.is_empty():
        raise UserError("The input has no events.")
    total = events.height
    dropped = {"min_item_count": 0, "min_user_events": 0}
    while True:
        before = events.height
        events = _keep_frequent(events, "item", min_item_count)
        dropped["min_item_count"] += before - events.height
        after_items = events.height
        events = _keep_frequent(events, "user", min_user_events)
        dropped["min_user_events"] += after_items - events.height
        if events.height == after_items:
            break
    if events.is_empty():
        raise UserError(
            f"None of the {total} events is left after --min_item_count={min_item_count} and "
            f"--min_user_events={min_user_events}; lower them."
        )
    return events, dropped


def _keep_frequent(events: pl.DataFrame, column: str, minimum: int) -> pl.DataFrame:
    if minimum <= 1:
        return events
    return events.filter(pl.len().over(column) >= minimum)


def vocabulary(events: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """The item table: id (int32, contiguous from 1), raw_id, count (int64), title, category.

    Ids go by descending count, equal counts by raw id in the order of UTF-8 bytes.
    """
    table = (
        events.group_by("item")
        .agg(pl.len().cast(pl.Int64).alias("count"))
        .sort(["count", "item"], descending=[True, False])
        .with_row_index("id", offset=1)
        .with_columns(pl.col("id").cast(pl.Int32))
    )
    return table.join(items, on="item", how="left", maintain_order="left").select(
        "id", pl.col("item").alias("raw_id"), "count", "title", "category"
    )
