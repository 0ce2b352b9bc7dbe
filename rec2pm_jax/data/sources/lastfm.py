"""Last.fm-1K: everything that 992 users listened to until May 2009, 19.15 M plays.

Schema: Celma, "Music Recommendation and Discovery in the Long Tail", ocelma.net (README of version
1.0) and Zenodo record 6090214 (checksum). The file is
userid-timestamp-artid-artname-traid-traname.tsv: UTF-8, tab-separated, without header or quotes. Its
fields are user, time (2009-04-08T01:57:47Z), MusicBrainz artist id, artist, MusicBrainz track id and
track. Ids are often empty, so names identify an item: --item=track (artist and track, the default) or
--item=artist.

Known flaws are dropped and counted: lines without six fields or a readable time, and plays after June
2009. These are later than the end of the collection, from players with wrong clocks.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading import scan
from rec2pm_jax.data.reading.download import Download
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.data.sources.source import Source, choose_item_level

TABLE = "userid-timestamp-artid-artname-traid-traname.tsv"
ITEM_LEVELS = ("track", "artist")
END = 1_246_406_400  # 2009-07-01
_FIELDS = ("user", "time", "artist_id", "artist", "track_id", "track")


def load(options: PrepareOptions) -> Interactions:
    """Read the table; UserError when it is missing or unreadable, or for an unknown --item."""
    level = choose_item_level(options, ITEM_LEVELS)
    paths = scan.find_files(Path(options.input), [TABLE], SOURCE.missing_error)
    # Whole lines first, so that a line with a wrong number of fields does not shift its neighbours.
    lines = scan.scan_files(
        pl.scan_csv,
        paths,
        ["line"],
        separator="\x01",  # occurs nowhere
        has_header=False,
        quote_char=None,
        schema={"line": pl.String},
        truncate_ragged_lines=True,
    )
    fields = pl.col("line").str.split("\t")
    frame = lines.select(
        right=fields.list.len() == len(_FIELDS),
        **{name: fields.list.get(i, null_on_oob=True) for i, name in enumerate(_FIELDS)},
    )
    time = pl.col("time").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", strict=False)
    name = pl.col("artist")
    if level == "track":
        name = pl.concat_str("artist", "track", separator=" - ")
    named = (pl.col("artist") != "") & ((pl.col("track") != "") | (level == "artist"))
    dropped: dict[str, int] = {}
    events = scan.read_events(
        frame.select(
            "right", "user", named=named, item=name, timestamp=time.dt.epoch("s").cast(pl.Int64)
        ),
        paths,
        dropped,
        {
            "malformed": ~pl.col("right") | pl.col("timestamp").is_null(),
            "without_a_name": ~pl.col("named"),
            "after_june_2009": pl.col("timestamp") >= END,
        },
    )
    items = frame.filter(named).group_by(item=name).agg(pl.col("artist").min())
    items = items.select("item", title="item", category="artist")
    return Interactions(events, scan.read_items(items, paths), item_level=level, dropped=dropped)


def _downloads(variant: str) -> tuple[Download, ...]:
    return (
        Download(
            "https://zenodo.org/records/6090214/files/lastfm-dataset-1K.tar.gz",
            md5="a79a6808f54f73354789a9fb02cb1e41",
            unpack=(TABLE,),
        ),
    )


SOURCE = Source(
    name="lastfm",
    description="Last.fm until 2009: whole listening of 992 users, 19 M plays",
    licence="Non-commercial use, by permission of Last.fm.",
    load=load,
    page="http://ocelma.net/MusicRecommendationDataset/lastfm-1K.html",
    files=f"DIR with {TABLE} (lastfm-dataset-1K)",
    variants=("1k",),
    downloads=_downloads,
    example="--variant=1k --download_dir=downloads --item=artist --min_item_count=5",
)
