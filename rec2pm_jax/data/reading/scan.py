"""Reading a publisher's large files in batches, with errors that name the file and the problem.

polars streams CSV and JSON-lines, plain or gzipped, and Parquet. Memory holds a few batches of `BATCH`
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from rec2pm_jax.data.polars_io import READ_ERRORS, plain_path
from rec2pm_jax.data.reading.log_files import BATCH, unreadable_error
from rec2pm_jax.data.reading.publisher_rows import (
    TextLayout,
    find_bad_event,
    find_unreadable_row,
)
from rec2pm_jax.data.reading.values import LATEST_TIMESTAMP
from rec2pm_jax.data.schema import (
    EVENT_COLUMNS,
    ITEM_COLUMNS,
    OPTIONAL_EVENT_COLUMNS,
)
from rec2pm_jax.errors import UserError, nearest

_NO_TEXT = TextLayout()
# column, problem -> condition
_PROBLEMS = {
    ("user", "no user"): pl.col("user").is_null() | (pl.col("user") == ""),
    ("item", "no item"): pl.col("item").is_null() | (pl.col("item") == ""),
    ("timestamp", "no readable timestamp"): pl.col("timestamp").is_null(),
    ("timestamp", "a negative timestamp"): pl.col("timestamp") < 0,
    ("timestamp", "a timestamp beyond the year 5000 (another unit?)"): (
        pl.col("timestamp") > LATEST_TIMESTAMP
    ),
}
_NO_TYPE = {
    ("event_type", "no event type"): pl.col("event_type").is_null() | (pl.col("event_type") == "")
}


def find_files(
    directory: Path, patterns: Iterable[str], missing: Callable[[str], UserError]
) -> list[Path]:
    """Return the files below a directory, in order of their names.

    Args:
      directory: where to look; a file is returned as it is.
      patterns: each needs at least one file.
      missing: makes the error for a pattern without a file from a sentence.

    Raises:
      UserError: a pattern has no file.
    """
    if directory.is_file():
        return [directory]
    found = []
    for pattern in patterns:
        matching = sorted(directory.rglob(pattern))
        if not matching:
            raise missing(f"{directory} holds no {pattern}.")
        found += matching
    return found


def scan_files(
    scan: Callable[..., pl.LazyFrame], paths: list[Path], columns: Iterable[str], **options: Any
) -> pl.LazyFrame:
    """Open files that have the same columns.

    Args:
      scan: polars' function for the kind of file.
      paths: the files.
      columns: the columns that will be read.
      **options: of `scan`.

    Raises:
      UserError: a column is absent, or a file is damaged.
    """
    try:
        frame = scan([plain_path(path) for path in paths], **options)
        known = frame.collect_schema().names()
    except READ_ERRORS as error:
        types = columns if isinstance(columns, Mapping) else {}
        raise _explain(paths, error, TextLayout(types)) from error
    for column in columns:
        if column not in known:
            raise UserError(
                f'{paths[0]} has no column "{column}"; its columns are {", ".join(known)}.'
                f"{nearest(column, known)}"
            )
    return frame


def read_events(
    frame: pl.LazyFrame,
    paths: list[Path],
    dropped: dict[str, int],
    drop: Mapping[str, pl.Expr] | None = None,
    ordered: bool = False,
    layout: TextLayout = _NO_TEXT,
) -> Iterator[pl.DataFrame]:
    """Yield batches of canonical events, without the rows that `drop` names.

    Args:
      frame: canonical columns, plus those that `drop` reads.
      paths: the files, for errors.
      dropped: counts the dropped rows by reason; complete after the last batch.
      drop: reason -> condition (null counts as false). A row counts for the first one that it meets.
      ordered: keep the order of the files, for sources whose ties are kept.
      layout: of text files, to name the row of an error.

    Raises:
      UserError: a damaged file, columns of another type, or, among the rows that remain, null or empty
        ids and null or negative times.
    """
    where = _name_files(paths)
    drop = drop or {}
    dropped.update(dict.fromkeys(drop, 0))
    try:
        schema = frame.collect_schema()
        canonical = {
            n: t for n, t in (EVENT_COLUMNS | OPTIONAL_EVENT_COLUMNS).items() if n in schema
        }
        for name, dtype in canonical.items():
            if schema[name] != dtype:
                raise UserError(f"{where}: the {name} is {schema[name]}, not {dtype} as expected.")
        problems = _PROBLEMS | (_NO_TYPE if "event_type" in canonical else {})
        batches = frame.collect_batches(
            chunk_size=BATCH, maintain_order=ordered, engine="streaming"
        )
        for batch in batches:
            for reason, condition in drop.items():
                rows = batch.height
                batch = batch.filter(~condition.fill_null(False))
                dropped[reason] += rows - batch.height
            for (column, problem), condition in problems.items():
                bad = batch.filter(condition)
                if bad.height:
                    raise UserError(
                        find_bad_event(paths, layout, column)
                        or f"{where}: rows with {problem}, the first {bad.row(0, named=True)}."
                    )
            yield batch.select(list(canonical))
    except READ_ERRORS as error:
        raise _explain(paths, error, layout) from error


def read_items(
    frame: pl.LazyFrame, paths: list[Path], layout: TextLayout = _NO_TEXT
) -> pl.DataFrame:
    """Return the item table: item, title and category as text, without rows that have no item.

    Args:
      frame: columns item, title and category; item is unique.
      paths: the files that `frame` reads, for errors.
      layout: of text files, to name the row of an error.

    Raises:
      UserError: a file is damaged.
    """
    frame = frame.select(pl.col(name).cast(dtype) for name, dtype in ITEM_COLUMNS.items())
    try:
        return frame.filter(pl.col("item").is_not_null()).collect(engine="streaming")
    except READ_ERRORS as error:
        raise _explain(paths, error, layout) from error


def _explain(paths: list[Path], error: BaseException, layout: TextLayout) -> UserError:
    """Return the error for files that polars cannot read."""
    if found := find_unreadable_row(paths, layout):
        return UserError(found)
    return unreadable_error(_find_damaged_file(paths) or _name_files(paths), error)


def _name_files(paths: list[Path]) -> str:
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _find_damaged_file(paths: list[Path]) -> Path | None:
    """Return the first of several Parquet files that cannot be read to its end."""
    for path in paths if len(paths) > 1 else []:
        if path.suffix == ".parquet":
            try:
                for _ in pl.scan_parquet(plain_path(path)).collect_batches(
                    chunk_size=BATCH, engine="streaming"
                ):
                    pass
            except READ_ERRORS:
                return path
    return None
