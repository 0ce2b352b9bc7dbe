"""Reading large files in batches: bounded memory, named problems instead of a traceback.

polars streams CSV and JSON-lines, plain or gzipped, and Parquet; nothing here holds more than a few
batches of `BATCH` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import polars as pl

from rec2pm_jax.data.schema import EVENT_COLUMNS, OPTIONAL_EVENT_COLUMNS
from rec2pm_jax.data.sources import tables
from rec2pm_jax.errors import UserError, nearest

BATCH = 1_000_000  # rows
_LATEST = 100_000_000_000  # seconds, the year 5138
_PROBLEMS = {
    "no user": pl.col("user").is_null() | (pl.col("user") == ""),
    "no item": pl.col("item").is_null() | (pl.col("item") == ""),
    "no readable timestamp": pl.col("timestamp").is_null(),
    "a negative timestamp": pl.col("timestamp") < 0,
    "a timestamp beyond the year 5000 (another unit?)": pl.col("timestamp") > _LATEST,
}


def files(
    directory: Path, patterns: Iterable[str], missing: Callable[[str], UserError]
) -> list[Path]:
    """The files below `directory` (or `directory` itself, a file), in order of their names.

    Raises:
      UserError: `missing(...)`, when a pattern has no file.
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


def open_lazily(
    scan: Callable[..., pl.LazyFrame], paths: list[Path], columns: Iterable[str], **options
) -> pl.LazyFrame:
    """Scans files that have the same columns; UserError when one is absent or a file is damaged."""
    try:
        frame = scan(paths, **options)
        known = frame.collect_schema().names()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise tables.unreadable(paths[0], error) from error
    for column in columns:
        if column not in known:
            raise UserError(
                f'{paths[0]} has no column "{column}"; its columns are {", ".join(known)}.'
                f"{nearest(column, known)}"
            )
    return frame


def events(
    frame: pl.LazyFrame,
    paths: list[Path],
    dropped: dict[str, int],
    drop: Mapping[str, pl.Expr] | None = None,
    ordered: bool = False,
) -> Iterator[pl.DataFrame]:
    """Batches of canonical events, without the rows that `drop` names.

    Args:
      frame: canonical columns, plus any that `drop` looks at.
      paths: the files, for errors.
      dropped: counts the rows left out by reason; complete after the last batch.
      drop: reason -> condition (null counts as false); a row counts for the first that it meets.
      ordered: rows in the order of the files, for sources whose ties are kept.

    Raises:
      UserError: damaged file, or null or empty ids, null or negative times among what stays.
    """
    where = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    drop = drop or {}
    dropped.update(dict.fromkeys(drop, 0))
    canonical = [n for n in EVENT_COLUMNS | OPTIONAL_EVENT_COLUMNS if n in frame.collect_schema()]
    batches = frame.collect_batches(chunk_size=BATCH, maintain_order=ordered, engine="streaming")
    try:
        for batch in batches:
            for reason, condition in drop.items():
                rows = batch.height
                batch = batch.filter(~condition.fill_null(False))
                dropped[reason] += rows - batch.height
            for problem, condition in _PROBLEMS.items():
                bad = batch.filter(condition)
                if bad.height:
                    raise UserError(
                        f"{where}: rows with {problem}, the first {bad.row(0, named=True)}."
                    )
            yield batch.select(canonical)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise tables.unreadable(where, error) from error
