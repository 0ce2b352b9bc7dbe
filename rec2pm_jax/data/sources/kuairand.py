"""KuaiRand: a month of exposures of short videos, with clicks; Pure, 1K and 27K.

Schema: Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed
Videos" (CIKM 2022) and the field descriptions at kuairand.com; checksums: Zenodo record 10439422. The
files in KuaiRand-X/data are CSV with a header:

    log_standard_4_08_to_4_21_x.csv    user_id, video_id, time_ms, is_click and more
    log_standard_4_22_to_5_08_x.csv    likewise (in two parts for 27k)
    log_random_4_22_to_5_08_x.csv      likewise
    video_features_basic_x.csv         video_id and tag, for example "12,65"

An event is an exposure with is_click = 1: a click, or a valid play in the single-column interface.
Clicked videos that were exposed at random count, too. Tags become categories, except in 27K, whose
32 M videos would outweigh its log.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading import scan
from rec2pm_jax.data.reading.download import Download
from rec2pm_jax.data.reading.publisher_rows import TextLayout
from rec2pm_jax.data.schema import Interactions, empty_items
from rec2pm_jax.data.sources.source import Source

_ARCHIVES = {
    "pure": ("KuaiRand-Pure.tar.gz", "0820331067a3784d9691136f772b35a7"),
    "1k": ("KuaiRand-1K.tar.gz", "6b0b9c8222d67fcd4c676218edca3f1f"),
    "27k": ("KuaiRand-27K.tar.gz", "3e3c799a24e2d23a4d2c757fbf9adf59"),
}
_LOGS = ("log_standard_4_08_to_4_21_*.csv", "log_standard_4_22_to_5_08_*.csv", "log_random_*.csv")
_FEATURES = "video_features_basic_*.csv"


def load(options: PrepareOptions) -> Interactions:
    """Read the logs below a directory; UserError for missing or unreadable files."""
    directory = Path(options.input)
    paths = scan.find_files(directory, _LOGS, SOURCE.missing_error)
    columns = {"user_id": pl.Int64, "video_id": pl.Int64, "time_ms": pl.Int64, "is_click": pl.Int64}
    frame = scan.scan_files(pl.scan_csv, paths, columns, schema_overrides=columns)
    dropped: dict[str, int] = {}
    events = scan.read_events(
        frame.select(
            user=pl.col("user_id").cast(pl.String),
            item=pl.col("video_id").cast(pl.String),
            timestamp=pl.col("time_ms") // 1000,
            order=pl.col("time_ms") % 1000,
            is_click="is_click",
        ),
        paths,
        dropped,
        {"not_clicked": pl.col("is_click") == 0},
        layout=TextLayout(columns, {"user": "user_id", "item": "video_id", "timestamp": "time_ms"}),
    )
    return Interactions(events, _read_categories(directory), item_level="video", dropped=dropped)


def _read_categories(directory: Path) -> pl.DataFrame:
    features = [] if directory.is_file() else sorted(directory.rglob(_FEATURES))
    if not features or features[0].stem.endswith("_27k"):
        return empty_items()
    columns = {"video_id": pl.Int64, "tag": pl.String}
    frame = scan.scan_files(pl.scan_csv, features, columns, schema_overrides=columns)
    return scan.read_items(
        frame.select(item="video_id", title=pl.lit(None), category="tag"),
        features,
        TextLayout(columns),
    )


def _downloads(variant: str) -> tuple[Download, ...]:
    name, md5 = _ARCHIVES[variant]
    features = () if variant == "27k" else (_FEATURES,)
    url = f"https://zenodo.org/records/10439422/files/{name}"
    return (Download(url, md5=md5, unpack=(*_LOGS, *features)),)


SOURCE = Source(
    name="kuairand",
    description="Kuaishou, 2022: clicks on short videos; 27K users, 322 M exposures (Pure, 1K, 27K)",
    licence="CC BY-SA 4.0.",
    load=load,
    page="https://kuairand.com",
    files="DIR with log_standard_*.csv and log_random_*.csv (KuaiRand-1K/data)",
    variants=tuple(_ARCHIVES),
    downloads=_downloads,
    example="--variant=1k --download_dir=downloads --min_item_count=5",
)
