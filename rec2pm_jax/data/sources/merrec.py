"""MerRec: six months of 5.56 M users of Mercari US, 1.27 B events; the paper's public dataset.

Schema: Li et al., "MerRec: A Large-scale Multipurpose Mercari Dataset for Consumer-to-Consumer
Recommendation Systems" (arXiv 2402.14230) and its dataset card. Shards NNNNNNNNNNNN.parquet are in a
folder per month, 20230501 .. 20231001. A user is in one shard of each month. The columns read are
`user_id`, `product_id` (or `item_id`, one listing), `stime` and `event_id`. Types of events: item_view,
item_like, item_add_to_cart_tap, offer_make, buy_start, buy_comp.

Two things are not verified. Times without a zone in `stime` are taken as UTC. Brand and category are
taken to be the same in all rows of a product; the smallest of each is the title.

The paper keeps users with at least 1,003 events: --min_user_events=1003.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading import scan
from rec2pm_jax.data.schema import Interactions, empty_items
from rec2pm_jax.data.sources.source import Source, choose_item_level
from rec2pm_jax.errors import UserError

ITEM_LEVELS = {"product": "product_id", "listing": "item_id"}


def load(options: PrepareOptions) -> Interactions:
    """Read a directory of shards; UserError if one is missing or unreadable, or for a wrong --item."""
    level = choose_item_level(options, ITEM_LEVELS)
    item = ITEM_LEVELS[level]
    paths = scan.find_files(Path(options.input), ["*.parquet"], SOURCE.missing_error)
    needed = ["user_id", item, "stime", "event_id", "brand_name", "c2_name"]
    frame = scan.scan_files(pl.scan_parquet, paths, needed)
    if not isinstance(frame.collect_schema()["stime"], pl.Datetime):
        raise UserError(f'{paths[0]}: the column "stime" must hold datetimes.')
    dropped: dict[str, int] = {}
    events = scan.read_events(
        frame.select(
            user=pl.col("user_id").cast(pl.String),
            item=pl.col(item).cast(pl.String),
            timestamp=pl.col("stime").dt.epoch("s"),
            order=pl.col("stime").dt.epoch("us") % 1_000_000,
            event_type=pl.col("event_id").cast(pl.String),
        ),
        paths,
        dropped,
        {f"without_{item}": pl.col("item").is_null() | (pl.col("item") == "")},
    )
    return Interactions(
        events, _read_products(frame, item, paths), item_level=level, dropped=dropped
    )


def _read_products(frame: pl.LazyFrame, item: str, paths: list[Path]) -> pl.DataFrame:
    """Read brand and finest category of each product. The 83 M listings get none."""
    if item != "product_id":
        return empty_items()
    names = frame.filter(pl.col(item).is_not_null()).group_by(item=pl.col(item).cast(pl.String))
    table = names.agg(pl.col("brand_name").min(), category=pl.col("c2_name").min())
    title = pl.concat_str("brand_name", "category", separator=", ", ignore_nulls=True)
    title = pl.when(title != "").then(title)
    return scan.read_items(table.select("item", "category", title=title), paths)


SOURCE = Source(
    name="merrec",
    description="Mercari US, 2023: 5.56 M users, 1.27 B views, likes, offers, purchases (166 GB)",
    licence="CC BY-NC 4.0: research and other non-commercial use, with attribution.",
    load=load,
    page="https://huggingface.co/datasets/mercari-us/merrec",
    files="DIR with the month folders 20230501 .. 20231001 of .parquet shards (some will do)",
    by_hand="fetch it with `hf download mercari-us/merrec --repo-type=dataset --local-dir=DIR`",
    example="--input=DIR --min_user_events=1003",
)
