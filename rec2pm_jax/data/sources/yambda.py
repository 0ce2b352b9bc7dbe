"""Yambda: ten months of listening on Yandex Music; 50 M, 500 M and 4.8 B events.

Schema: Ploshkin et al., "Yambda-5B: A Large-Scale Multi-modal Dataset for Ranking And Retrieval"
(arXiv 2505.22238) and its dataset card. The files in flat/SIZE/ are

    listens.parquet        uid, item_id, timestamp, is_organic, played_ratio_pct, track_length_seconds
    likes.parquet          the first four of these
    multi_event.parquet    all of these and event_type (listen, like, dislike, unlike, undislike)

The files in sequential/SIZE/ have the same columns as lists, a row per user. All are read.

`timestamp` counts seconds, rounded to 5, from an origin that is not published. So gaps are real and
dates are not. The publisher's own benchmark counts days of 86,400 seconds.

Events are listens of at least half of the track (the publisher's Listen+) and, in multi_event, likes.
Other feedback takes something back or rejects it, and is dropped.

Downloads are checked against the sha256 in the publisher's Git LFS pointer. It was not tried whether
the host shows the pointer at this address.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading import scan
from rec2pm_jax.data.reading.download import Download
from rec2pm_jax.data.schema import Interactions, empty_items
from rec2pm_jax.data.sources.source import Source

LISTENED = 50  # percent of a track
_URL = "https://huggingface.co/datasets/yandex/yambda"


def load(options: PrepareOptions) -> Interactions:
    """Read one parquet file; UserError when it is missing or unreadable."""
    path = Path(options.input)
    if path.is_dir():
        path /= "listens.parquet"
        if not path.is_file():
            raise SOURCE.missing_error(f"{path} does not exist.")
    frame = scan.scan_files(pl.scan_parquet, [path], ("uid", "item_id", "timestamp"))
    schema = frame.collect_schema()
    names = ["item_id", "timestamp"]
    names += [name for name in ("played_ratio_pct", "event_type") if name in schema]
    frame = frame.select("uid", *names)
    if isinstance(schema["item_id"], pl.List):
        frame = frame.explode(names)
    columns = {
        "user": pl.col("uid").cast(pl.String),
        "item": pl.col("item_id").cast(pl.String),
        "timestamp": pl.col("timestamp").cast(pl.Int64),
    }
    drop = {}
    if "event_type" in names:
        columns["event_type"] = pl.col("event_type").cast(pl.String)
        drop["taken_back_or_rejected"] = ~pl.col("event_type").is_in(["listen", "like"])
    if "played_ratio_pct" in names:
        columns["played_ratio_pct"] = pl.col("played_ratio_pct")
        drop[f"played_less_than_{LISTENED}_percent"] = pl.col("played_ratio_pct") < LISTENED
    dropped: dict[str, int] = {}
    events = scan.read_events(frame.select(**columns), [path], dropped, drop)
    return Interactions(
        events,
        empty_items(),
        item_level="track",
        dropped=dropped,
        notes={"time_origin": "not published; timestamps count seconds, rounded to 5, from it"},
    )


def _downloads(variant: str) -> tuple[Download, ...]:
    file = f"main/flat/{variant}/listens.parquet"
    return (Download(f"{_URL}/resolve/{file}", checksum_url=f"{_URL}/raw/{file}"),)


SOURCE = Source(
    name="yambda",
    description="Yandex Music: ten months of listening; 1 M users, 4.79 B events (50m, 500m, 5b)",
    licence="Apache 2.0; its publisher means it for research.",
    load=load,
    page=_URL,
    files="FILE, a flat or sequential listens, likes or multi_event .parquet",
    variants=("50m", "500m", "5b"),
    downloads=_downloads,
    example="--variant=50m --download_dir=downloads --min_item_count=20",
)
