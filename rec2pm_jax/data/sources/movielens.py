"""MovieLens in its own layouts.

Schema: Harper and Konstan, "The MovieLens Datasets: History and Context" (TiiS 2015) and the README
files at grouplens.org; checksums: the .md5 files beside the archives. --input is a file, or the
directory that an archive was unpacked to.

    ratings.dat        UserID::MovieID::Rating::Timestamp, no header (1M, 10M), latin-1
    ratings.csv        userId,movieId,rating,timestamp (20M, 25M, 32M)
    any .parquet       user_id, item_id, timestamp and optionally order

Every rating is an interaction, whatever its value. Titles and genres come from movies.dat,
movies.csv or NAME-items.parquet beside the file when there is one.

A parquet file with an `order` column is put in that order, and its timestamps are then not treated
as seconds where they only repeat the order. In the ratings files many events of a user share a
second; the published preprocessings keep the order of the file there, so ties are kept by default.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec2pm_jax.data.schema import ITEM_COLUMNS, Interactions, no_items
from rec2pm_jax.data.sources import scan, tables
from rec2pm_jax.data.sources.download import Download
from rec2pm_jax.data.sources.source import Source
from rec2pm_jax.errors import UserError

_MD5 = {
    "1m": "c4d9eecfca2ab87c1945afe126590906",
    "20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "25m": "6b51fb2759a8657d3bfcbfc42b592ada",
    "32m": "d472be332d4daa821edc399621853b57",
}


def load(options) -> Interactions:
    """Reads ratings; UserError for a missing or malformed file."""
    path = Path(options.input)
    if path.is_dir():
        names = ("ratings.dat", "ratings.csv")
        path = next((path / name for name in names if (path / name).is_file()), path)
        if path.is_dir():
            raise SOURCE.missing(f"{path} holds no {' and no '.join(names)}.")
    if path.suffix == ".dat":
        return _from_dat(path)
    if path.suffix == ".csv":
        return _from_csv(path)
    if path.suffix == ".parquet":
        titles = path.with_name(f"{path.stem}-items.parquet")
        return _from_table(path, "user_id", "item_id", titles)
    raise UserError(f"{path}: movielens reads ratings.dat, ratings.csv or a .parquet file.")


def _from_dat(path: Path) -> Interactions:
    ratings = _read_dat(path, ["UserID", "MovieID", "Rating", "Timestamp"])
    titles = path.with_name("movies.dat")
    items = no_items()
    if titles.is_file():
        movies = _read_dat(titles, ["MovieID", "Title", "Genres"])
        items = movies.select(item="MovieID", title="Title", category="Genres")
    return Interactions(
        _events(ratings, "UserID", "MovieID", "Timestamp", path), items, ties="keep"
    )


def _read_dat(path: Path, names: list[str]) -> pl.DataFrame:
    """Lines of fields separated by "::", all as text."""
    try:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise tables.unreadable(path, error) from error
    fields = pl.Series("line", lines, dtype=pl.String).str.split("::")
    wrong = (fields.list.len() != len(names)).arg_true()
    if len(wrong):
        raise UserError(
            f"{path}, row {wrong[0] + 1}: expected {'::'.join(names)}, got "
            f"{lines[int(wrong[0])][:80]!r}."
        )
    return pl.DataFrame({name: fields.list.get(i) for i, name in enumerate(names)})


def _from_csv(path: Path) -> Interactions:
    columns = {"userId": pl.Int64, "movieId": pl.Int64, "timestamp": pl.Int64}
    frame = scan.open_lazily(pl.scan_csv, [path], columns, schema_overrides=columns)
    dropped: dict[str, int] = {}
    events = scan.events(
        frame.select(
            user=pl.col("userId").cast(pl.String),
            item=pl.col("movieId").cast(pl.String),
            timestamp="timestamp",
        ),
        [path],
        dropped,
        ordered=True,
    )
    items = _titles(path.with_name("movies.csv"), "movieId")
    return Interactions(events, items, ties="keep", dropped=dropped)


def _from_table(path: Path, user: str, item: str, titles: Path) -> Interactions:
    ratings = tables.read_table(path)
    has_times = True
    if "order" in ratings.columns:
        rank = tables.seconds(ratings["order"], path)
        has_times = not (rank == tables.column(ratings, "timestamp", path)).all()
        time = "timestamp" if has_times else "order"
        ratings = ratings[rank.arg_sort()] if has_times else ratings
    else:
        time = "timestamp"
    return Interactions(
        _events(ratings, user, item, time, path),
        _titles(titles, item),
        ties="keep",
        has_times=has_times,
    )


def _titles(path: Path, item: str) -> pl.DataFrame:
    if not path.is_file():
        return no_items()
    movies = tables.read_table(path)
    return pl.DataFrame(
        {
            "item": tables.ids(tables.column(movies, item, path), path),
            "title": tables.column(movies, "title", path),
            "category": tables.column(movies, "genres", path),
        },
        schema=ITEM_COLUMNS,
    )


def _events(frame: pl.DataFrame, user: str, item: str, time: str, path: Path) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user": tables.ids(tables.column(frame, user, path), path),
            "item": tables.ids(tables.column(frame, item, path), path),
            "timestamp": tables.seconds(tables.column(frame, time, path), path),
        }
    )


def _downloads(variant: str) -> tuple[Download, ...]:
    suffix = "dat" if variant == "1m" else "csv"
    url = f"https://files.grouplens.org/datasets/movielens/ml-{variant}.zip"
    return (Download(url, _MD5[variant], unpack=(f"ratings.{suffix}", f"movies.{suffix}")),)


SOURCE = Source(
    name="movielens",
    description="Film ratings: 1 M of 6,040 users to 32 M of 200,948 (1m, 20m, 25m, 32m)",
    licence="GroupLens' terms: research, no redistribution or commercial use without permission.",
    load=load,
    page="https://grouplens.org/datasets/movielens",
    files="FILE, ratings.dat or ratings.csv, or DIR with it",
    variants=tuple(_MD5),
    downloads=_downloads,
    example="--variant=1m --download_dir=downloads --min_item_count=5",
)
