"""Taobao UserBehavior: nine days of late 2017, 988 thousand users, 100 M events.

Schema: "User Behavior Data from Taobao for Recommendation", Tianchi dataset 649. UserBehavior.csv has
no header. Its fields are user, item, category, behaviour (pv, buy, cart, fav) and seconds since 1970.
Categories are numbers. The times cover 25 November to 3 December 2017. As published analyses report, a
few rows lie outside; they are dropped and counted.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading import scan
from rec2pm_jax.data.reading.publisher_rows import TextLayout
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.data.sources.source import Source

_SCHEMA = {
    "user": pl.Int64,
    "item": pl.Int64,
    "category": pl.Int64,
    "event_type": pl.String,
    "timestamp": pl.Int64,
}
_LAYOUT = TextLayout(_SCHEMA, {name: name for name in ("user", "item", "timestamp", "event_type")})
_ZONE = datetime.timezone(datetime.timedelta(hours=8))  # China
FIRST = int(datetime.datetime(2017, 11, 25, tzinfo=_ZONE).timestamp())
END = int(datetime.datetime(2017, 12, 4, tzinfo=_ZONE).timestamp())


def load(options: PrepareOptions) -> Interactions:
    """Read UserBehavior.csv; UserError when it is missing or unreadable."""
    paths = scan.find_files(Path(options.input), ["UserBehavior.csv"], SOURCE.missing_error)
    frame = scan.scan_files(pl.scan_csv, paths, _SCHEMA, has_header=False, schema=_SCHEMA)
    dropped: dict[str, int] = {}
    events = scan.read_events(
        frame.with_columns(pl.col("user", "item").cast(pl.String)),
        paths,
        dropped,
        {"outside_of_the_nine_days": ~pl.col("timestamp").is_between(FIRST, END - 1)},
        layout=_LAYOUT,
    )
    # Grouped as integers, which take a tenth of the memory of strings.
    items = frame.group_by("item").agg(pl.col("category").min(), title=pl.lit(None))
    return Interactions(
        events, scan.read_items(items, paths, _LAYOUT), item_level="item", dropped=dropped
    )


SOURCE = Source(
    name="taobao",
    description="Taobao, nine days of 2017: 988 K users, 100 M views, carts, favourites, purchases",
    licence="Terms of Alibaba's Tianchi, shown there after login; the licence was not verified here.",
    load=load,
    page="https://tianchi.aliyun.com/dataset/649",
    files="FILE or DIR with UserBehavior.csv, unpacked",
    by_hand="log in at https://tianchi.aliyun.com/dataset/649, download and unpack UserBehavior.csv",
    example="--input=UserBehavior.csv --min_item_count=5 --min_user_events=100",
)
