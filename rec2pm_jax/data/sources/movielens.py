"""MovieLens, in the layouts of its archives.

Schema: Harper and Konstan, "The MovieLens Datasets: History and Context" (TiiS 2015) and the README
files at grouplens.org; checksums: the .md5 files beside the archives. --input is a file, or the
directory that an archive was unpacked to.

    ratings.dat        UserID::MovieID::Rating::Timestamp, no header (1M, 10M), UTF-8 or latin-1
    ratings.csv        userId,movieId,rating,timestamp (20M, 25M, 32M)
    any .parquet       user_id, item_id, timestamp and optionally order

Every rating is an interaction, whatever its value. Titles and genres come from movies.dat,
movies.csv or NAME-items.parquet beside the file, if it exists.

A parquet file with an `order` column is read in that order. If its timestamps only repeat the order,
they are not treated as seconds. In the ratings files many events of a user share a second. The
published preprocessings keep the order of the file there, so ties are kept by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading.column_checks import (
    check_whole,
    get_column,
    raise_issues,
    to_ids,
    to_seconds,
    to_whole_numbers,
)
from rec2pm_jax.data.reading.download import Download
from rec2pm_jax.data.reading.log_files import read_batches, read_whole, unreadable_error
from rec2pm_jax.data.reading.report import BatchCheck, LogReport
from rec2pm_jax.data.reading.text_lines import read_lines
from rec2pm_jax.data.schema import ITEM_COLUMNS, Interactions, empty_items
from rec2pm_jax.data.sources.source import Source
from rec2pm_jax.errors import UserError

_MD5 = {
    "1m": "c4d9eecfca2ab87c1945afe126590906",
    "20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "25m": "6b51fb2759a8657d3bfcbfc42b592ada",
    "32m": "d472be332d4daa821edc399621853b57",
}


def load(options: PrepareOptions) -> Interactions:
    """Read ratings; UserError for a missing or malformed file."""
    path = Path(options.input)
    if path.is_dir():
        names = ("ratings.dat", "ratings.csv")
        path = next((path / name for name in names if (path / name).is_file()), path)
        if path.is_dir():
            raise SOURCE.missing_error(f"{path} holds no {' and no '.join(names)}.")
    if path.suffix == ".dat":
        return _load_dat(path)
    if path.suffix == ".csv":
        return _load_csv(path)
    if path.suffix == ".parquet":
        titles = path.with_name(f"{path.stem}-items.parquet")
        return _load_parquet(path, titles)
    raise UserError(f"{path}: movielens reads ratings.dat, ratings.csv or a .parquet file.")


def _load_dat(path: Path) -> Interactions:
    ratings = _read_dat(path, ["UserID", "MovieID", "Rating", "Timestamp"])
    titles = path.with_name("movies.dat")
    items = empty_items()
    if titles.is_file():
        movies = _read_dat(titles, ["MovieID", "Title", "Genres"])
        items = movies.select(item="MovieID", title="Title", category="Genres")
    return Interactions(
        _make_events(ratings, "UserID", "MovieID", "Timestamp", path), items, ties="keep"
    )


def _read_dat(path: Path, names: list[str]) -> pl.DataFrame:
    """Read lines of fields separated by "::", all as text."""
    try:
        lines = read_lines(path)
    except OSError as error:
        raise unreadable_error(path, error) from error
    fields = pl.Series("line", lines, dtype=pl.String).str.split("::")
    wrong = (fields.list.len() != len(names)).arg_true()
    if len(wrong):
        raise UserError(
            f"{path}, row {wrong[0] + 1}: expected {'::'.join(names)}, got "
            f"{lines[int(wrong[0])][:80]!r}."
        )
    return pl.DataFrame({name: fields.list.get(i) for i, name in enumerate(names)})


def _load_csv(path: Path) -> Interactions:
    items = _read_titles(path.with_name("movies.csv"), "movieId")
    return Interactions(_read_csv_events(path), items, ties="keep")


def _read_csv_events(path: Path) -> Iterator[pl.DataFrame]:
    names = ("userId", "movieId", "timestamp")
    for rows, frame in read_batches(path, [("", name) for name in names], ","):
        check = BatchCheck(LogReport(), path, rows)
        user, item, time = (frame[name] for name in names)
        events = {
            "user": to_ids(to_whole_numbers(user, check), check),
            "item": to_ids(to_whole_numbers(item, check), check),
            "timestamp": to_seconds(time, check),
        }
        raise_issues(check)
        yield pl.DataFrame(events)


def _load_parquet(path: Path, titles: Path) -> Interactions:
    ratings = read_whole(path)
    has_times = True
    if "order" in ratings.columns:
        check = check_whole(ratings, path)
        rank = to_seconds(ratings["order"], check)
        raise_issues(check)
        has_times = not (rank == get_column(ratings, "timestamp", path)).all()
        time = "timestamp" if has_times else "order"
        ratings = ratings[rank.arg_sort()] if has_times else ratings
    else:
        time = "timestamp"
    return Interactions(
        _make_events(ratings, "user_id", "item_id", time, path),
        _read_titles(titles, "item_id"),
        ties="keep",
        has_times=has_times,
    )


def _read_titles(path: Path, item: str) -> pl.DataFrame:
    if not path.is_file():
        return empty_items()
    movies = read_whole(path)
    first_row = 2 if path.suffix == ".csv" else 1
    check = check_whole(movies, path, first_row)
    columns = {
        "item": to_ids(get_column(movies, item, path), check),
        "title": get_column(movies, "title", path),
        "category": get_column(movies, "genres", path),
    }
    raise_issues(check)
    return pl.DataFrame(columns, schema=ITEM_COLUMNS)


def _make_events(frame: pl.DataFrame, user: str, item: str, time: str, path: Path) -> pl.DataFrame:
    check = check_whole(frame, path)
    events = {
        "user": to_ids(get_column(frame, user, path), check),
        "item": to_ids(get_column(frame, item, path), check),
        "timestamp": to_seconds(get_column(frame, time, path), check),
    }
    raise_issues(check)
    return pl.DataFrame(events)


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
    beside=("movies.dat", "movies.csv", "{stem}-items.parquet"),
    example="--variant=1m --download_dir=downloads --min_item_count=5",
)
