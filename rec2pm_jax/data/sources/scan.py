"""Reading large files in batches: bounded memory, named problems instead of a traceback.

polars streams CSV and JSON-lines, plain or gzipped, and Parquet; nothing here holds more than a few
batches of `BATCH` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import polars as pl

from rec2pm_jax.data.columns import UNREADABLE
from rec2pm_jax.data.schema import EVENT_COLUMNS, ITEM_COLUMNS, OPTIONAL_EVENT_COLUMNS
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
_NO_TYPE = {"no event type": pl.col("event_type").is_null() | (pl.col("event_type") == "")}


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
    except UNREADABLE as error:
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
      UserError: damaged file, columns of another kind, or null or empty ids, null or negative times
        among what stays.
    """
    where = _named(paths)
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
            for problem, condition in problems.items():
                bad = batch.filter(condition)
                if bad.height:
                    raise UserError(
                        f"{where}: rows with {problem}, the first {bad.row(0, named=True)}."
                    )
            yield batch.select(list(canonical))
    except UNREADABLE as error:
        raise tables.unreadable(_damaged(paths) or where, error) from error


def items(frame: pl.LazyFrame, paths: list[Path]) -> pl.DataFrame:
    """An item table of `frame`'s item, title and category, as text; rows without an item go.

    Raises:
      UserError: one of `paths`, the files behind it, is damaged.
    """
    frame = frame.select(pl.col(name).cast(dtype) for name, dtype in ITEM_COLUMNS.items())
    try:
        return frame.filter(pl.col("item").is_not_null()).collect(engine="streaming")
    except UNREADABLE as error:
        raise tables.unreadable(_damaged(paths) or _named(paths), error) from error


def _named(paths: list[Path]) -> str:
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _damaged(paths: list[Path]) -> Path | None:
    """The first of many Parquet files that cannot be read to its end."""
    for path in paths if len(paths) > 1 else []:
        if path.suffix == ".parquet":
            try:
                for _ in pl.scan_parquet(path).collect_batches(
                    chunk_size=BATCH, engine="streaming"
                ):
                    pass
            except UNREADABLE:
                return path
    return None
