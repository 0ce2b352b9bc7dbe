"""EB-NeRD: clicks on news articles of Ekstra Bladet, six weeks of spring 2023.

Schema: Kruse et al., "EB-NeRD: A Large-Scale Dataset for News Recommendation" (RecSys Challenge 2024)
and recsys.eb.dk. A bundle (demo, small, large) holds articles.parquet, and two files in each of train/
and validation/:

    history.parquet      one row per user, with lists over the 21 days before the split: `user_id`,
                         `article_id_fixed`, `impression_time_fixed`
    behaviors.parquet    one row per impression of the seven days of the split: `user_id`,
                         `impression_time`, `article_ids_clicked` (a list)

The validation histories cover the training week again. So they are read only for users without a
training history. The events of other users come from train/history, train/behaviors and
validation/behaviors. --input may also be the folder of one split.

Two things are not verified: the zone of times, which state none and are taken as UTC, and the wording
of the terms.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading import scan
from rec2pm_jax.data.schema import Interactions, empty_items
from rec2pm_jax.data.sources.source import Source

_HISTORY = ("user_id", "article_id_fixed", "impression_time_fixed")
_BEHAVIORS = ("user_id", "article_ids_clicked", "impression_time")


def load(options: PrepareOptions) -> Interactions:
    """Read a bundle or one split of it; UserError for missing or unreadable files."""
    bundle = Path(options.input)
    splits = [bundle]
    if not (bundle / "history.parquet").is_file():
        splits = [bundle / name for name in ("train", "validation")]
    paths: list[Path] = []
    parts: list[pl.LazyFrame] = []
    known: pl.LazyFrame | None = None
    for split in splits:
        history, path = _open(split / "history.parquet", _HISTORY)
        behaviors, other = _open(split / "behaviors.parquet", _BEHAVIORS)
        if known is not None:
            history = history.join(known, on="user_id", how="anti")
        else:
            known = history.select("user_id")
        parts += [
            _explode_lists(history, "article_id_fixed", "impression_time_fixed"),
            _explode_lists(behaviors, "article_ids_clicked", "impression_time"),
        ]
        paths += [path, other]
    dropped: dict[str, int] = {}
    events = scan.read_events(pl.concat(parts), paths, dropped)
    return Interactions(events, _read_articles(bundle), item_level="article", dropped=dropped)


def _open(path: Path, columns: tuple[str, ...]) -> tuple[pl.LazyFrame, Path]:
    if not path.is_file():
        raise SOURCE.missing_error(f"{path} does not exist.")
    return scan.scan_files(pl.scan_parquet, [path], columns).select(columns), path


def _explode_lists(frame: pl.LazyFrame, item: str, time: str) -> pl.LazyFrame:
    """Return one row per article of the list `item`. A history lists the time of each, too."""
    lists = [name for name, kind in frame.collect_schema().items() if isinstance(kind, pl.List)]
    return (
        frame.filter(pl.col(item).list.len() > 0)  # most impressions end without a click
        .explode(lists)
        .select(
            user=pl.col("user_id").cast(pl.String),
            item=pl.col(item).cast(pl.String),
            timestamp=pl.col(time).dt.epoch("s"),
        )
    )


def _read_articles(bundle: Path) -> pl.DataFrame:
    beside = [folder / "articles.parquet" for folder in (bundle, bundle.parent)]
    path = next((path for path in beside if path.is_file()), None)
    if path is None:
        return empty_items()
    frame = scan.scan_files(pl.scan_parquet, [path], ("article_id", "title", "category_str"))
    return scan.read_items(
        frame.select("title", item="article_id", category="category_str"), [path]
    )


SOURCE = Source(
    name="ebnerd",
    description="Ekstra Bladet, 2023: six weeks of clicks on news (demo, small, large)",
    licence="Ekstra Bladet's own terms for research, accepted on registration; no redistribution.",
    load=load,
    page="https://recsys.eb.dk",
    files="DIR, the unpacked ebnerd_demo, ebnerd_small or ebnerd_large",
    by_hand="register at https://recsys.eb.dk, accept the terms, download and unpack a bundle",
    example="--input=ebnerd_small --min_user_events=20",
)
