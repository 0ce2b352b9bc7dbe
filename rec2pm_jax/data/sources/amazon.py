"""Amazon Reviews 2023, one category: 571 M reviews from 1996 to 2023 in 33 categories.

Schema: Hou et al., "Bridging Language and Items for Retrieval and Recommendation" (arXiv 2403.03952)
and amazon-reviews-2023.github.io. Two layouts are read; times are milliseconds:

    CATEGORY.csv.gz      user_id,parent_asin,rating,timestamp: all reviews ("0core"), or those of users
                         and items with at least five ("5core")
    CATEGORY.jsonl.gz    user_id, parent_asin, timestamp and the texts ("raw")

Titles come from meta_CATEGORY.jsonl.gz beside the file (parent_asin, title, main_category), if it
exists.

An event is a review, whatever its rating. The publisher states no checksums.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading import scan
from rec2pm_jax.data.reading.download import Download
from rec2pm_jax.data.reading.publisher_rows import TextLayout
from rec2pm_jax.data.schema import Interactions, empty_items
from rec2pm_jax.data.sources.source import Source

CATEGORIES = tuple(
    "All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products "
    "Beauty_and_Personal_Care Books CDs_and_Vinyl Cell_Phones_and_Accessories "
    "Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards Grocery_and_Gourmet_Food "
    "Handmade_Products Health_and_Household Health_and_Personal_Care Home_and_Kitchen "
    "Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV "
    "Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies Software "
    "Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement Toys_and_Games "
    "Video_Games Unknown".split()
)
_URL = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023"
_FOLDERS = {
    "5core": "benchmark/5core/rating_only/{}.csv.gz",
    "0core": "benchmark/0core/rating_only/{}.csv.gz",
    "raw": "raw/review_categories/{}.jsonl.gz",
}
_COLUMNS = {"user_id": pl.String, "parent_asin": pl.String, "timestamp": pl.Int64}


def load(options: PrepareOptions) -> Interactions:
    """Read a file, or the one file of a directory; UserError when it is missing or unreadable."""
    path = Path(options.input)
    if path.is_dir():
        found = [f for f in sorted(path.glob("*.gz")) if not f.name.startswith("meta_")]
        if len(found) != 1:
            raise SOURCE.missing_error(
                f"{path} holds {len(found)} files .csv.gz or .jsonl.gz, not one."
            )
        path = found[0]
    dropped: dict[str, int] = {}
    events = scan.read_events(
        _scan(path, _COLUMNS).select(
            user="user_id",
            item="parent_asin",
            timestamp=pl.col("timestamp") // 1000,
            order=pl.col("timestamp") % 1000,
        ),
        [path],
        dropped,
        layout=TextLayout(
            _COLUMNS, {"user": "user_id", "item": "parent_asin", "timestamp": "timestamp"}
        ),
    )
    return Interactions(events, _read_titles(path), item_level="product", dropped=dropped)


def _scan(path: Path, columns: Mapping[str, type[pl.DataType]]) -> pl.LazyFrame:
    if ".jsonl" in path.suffixes:
        return scan.scan_files(pl.scan_ndjson, [path], columns, schema=columns)
    return scan.scan_files(pl.scan_csv, [path], columns, schema_overrides=columns)


def _read_titles(path: Path) -> pl.DataFrame:
    meta = path.with_name(f"meta_{path.name.split('.')[0]}.jsonl.gz")
    if not meta.is_file():
        return empty_items()
    columns = {"parent_asin": pl.String, "title": pl.String, "main_category": pl.String}
    # One line per product is expected. With several, the smallest text keeps the table deterministic.
    products = _scan(meta, columns).group_by(item="parent_asin")
    return scan.read_items(
        products.agg(pl.col("title").min(), category=pl.col("main_category").min()),
        [meta],
        TextLayout(columns),
    )


def _downloads(variant: str) -> tuple[Download, ...]:
    core, category = variant.split("/")
    return (Download(f"{_URL}/{_FOLDERS[core].format(category)}"),)


SOURCE = Source(
    name="amazon",
    description="Amazon reviews 1996-2023: 54 M users, 571 M reviews, 33 categories and Unknown",
    licence="No licence is stated; published for research by McAuley Lab, UCSD, who ask to be cited.",
    load=load,
    page="https://amazon-reviews-2023.github.io",
    files="FILE, CATEGORY.csv.gz or CATEGORY.jsonl.gz (and meta_CATEGORY.jsonl.gz beside it)",
    variants=tuple(f"{core}/{category}" for core in _FOLDERS for category in CATEGORIES),
    downloads=_downloads,
    beside=("meta_*.jsonl.gz",),
    example="--variant=0core/Books --download_dir=downloads --min_user_events=100",
)
