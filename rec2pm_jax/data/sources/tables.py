"""Reading columns of a file: CSV, Parquet or JSON-lines, with errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path

import polars as pl

from rec2pm_jax.data.columns import UNREADABLE
from rec2pm_jax.errors import UserError, nearest

_READERS = {
    ".csv": lambda path: pl.read_csv(path, infer_schema=False),
    ".tsv": lambda path: pl.read_csv(path, infer_schema=False, separator="\t"),
    ".parquet": pl.read_parquet,
    ".jsonl": lambda path: pl.read_ndjson(path, infer_schema_length=None),
    ".ndjson": lambda path: pl.read_ndjson(path, infer_schema_length=None),
    ".json": lambda path: pl.read_ndjson(path, infer_schema_length=None),
}

BATCH = 1_000_000  # rows
_JSON = (".jsonl", ".ndjson", ".json")
_SCANS = {
    ".csv": lambda path: pl.scan_csv(path, infer_schema=False),
    ".csv.gz": lambda path: pl.scan_csv(path, infer_schema=False),
    ".tsv": lambda path: pl.scan_csv(path, infer_schema=False, separator="\t"),
    ".tsv.gz": lambda path: pl.scan_csv(path, infer_schema=False, separator="\t"),
    ".parquet": pl.scan_parquet,
} | dict.fromkeys(_JSON, lambda path: pl.scan_ndjson(path, infer_schema_length=1000))

_LATEST = 100_000_000_000  # seconds; milliseconds since 1970 have passed it in 1973


def input_files(value: str, source: str) -> list[Path]:
    """The files given as --input: a file, a directory or a pattern; in the order of their names.

    Raises:
      UserError: there are none.
    """
    if not value:
        raise UserError(f"--source={source} needs --input=FILE, DIR or PATTERN.")
    path = Path(value)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in _SCANS)
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob(value, recursive=True))
    if not found:
        raise UserError(f"--input={value} does not exist or holds no {', '.join(_SCANS)} file.")
    return found


def batches(path: Path, flags: Mapping[str, str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Some columns of a file, at most about BATCH rows at a time, and the row each batch begins at.

    Rows are numbered as an editor shows them: a CSV file's first line is its header. Every column of a
    text file is text.

    Args:
      flags: the flag behind each wanted column, e.g. {"user_column": "uid"}.

    Raises:
      UserError: unknown suffix, unknown column, or a file that cannot be read.
    """
    suffix = _suffix(path)
    if suffix not in _SCANS:
        raise UserError(f"{path}: unknown file type; known are {', '.join(_SCANS)}.")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty.")
    row = 2 if suffix in (".csv", ".tsv") else 1
    try:
        frame = _SCANS[suffix](path)
        schema = frame.collect_schema()
        for flag, name in flags.items():
            if name not in schema:
                raise UserError(
                    f"{path} has no --{flag}={name}; its columns are {', '.join(schema)}."
                    f"{nearest(name, list(schema))}"
                )
        if suffix in _JSON:
            # Numbers become text, so that a file may write an id both ways.
            simple = {n: t for n, t in schema.items() if not (t.is_float() or t.is_nested())}
            frame = pl.scan_ndjson(path, schema=dict(schema) | dict.fromkeys(simple, pl.String))
        wanted = frame.select(list(dict.fromkeys(flags.values())))
        for batch in wanted.collect_batches(chunk_size=BATCH, maintain_order=True):
            if batch.height:
                yield row, batch
            row += batch.height
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()


def read_table(path: Path) -> pl.DataFrame:
    """Reads a table by its suffix; every column of a CSV file is text.

    Raises:
      UserError: unknown suffix, or a file that cannot be read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown file type; known are {', '.join(_READERS)}.")
    try:
        return reader(path)
    except pl.exceptions.NoDataError as error:
        raise UserError(f"{path} is empty.") from error
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: Path | str, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read: {reason}")


def column(frame: pl.DataFrame, name: str, path: Path, flag: str = "") -> pl.Series:
    """A column of a file; UserError naming the columns that exist when it is not there."""
    if name not in frame.columns:
        asked = f"{flag}={name}" if flag else f'a column "{name}"'
        raise UserError(
            f"{path} has no {asked}; its columns are {', '.join(frame.columns)}."
            f"{nearest(name, frame.columns)}"
        )
    return frame[name]


def ids(values: pl.Series, path: Path, first_row: int = 1) -> pl.Series:
    """User or item ids as strings.

    Raises:
      UserError: null or empty, fractional or nested ids, with the first row (from `first_row`).
    """
    if not (values.dtype.is_integer() or values.dtype in (pl.String, pl.Categorical)):
        raise UserError(
            f'{path}, column "{values.name}": ids must be integers or text, not {values.dtype}.'
        )
    texts = values.cast(pl.String)
    refuse(texts.is_null() | (texts == "").fill_null(True), texts, path, first_row, "an empty id")
    if values.dtype.is_integer():
        refuse(values < 0, values, path, first_row, "a negative id")
    return texts


def whole_numbers(values: pl.Series, path: Path, first_row: int = 1) -> pl.Series:
    """int64; UserError naming the first row that is not a whole number."""
    numbers = values.cast(pl.Int64, strict=False)
    fractional = values.dtype.is_float() and (values != values.floor())
    refuse(numbers.is_null() | fractional, values, path, first_row, "not a whole number")
    return numbers


def seconds(values: pl.Series, path: Path, first_row: int = 1) -> pl.Series:
    """Timestamps as int64 seconds since 1970, from integers, whole floats, text or datetimes.

    Raises:
      UserError: null, negative or non-integer timestamps, with the first row (from `first_row`).
    """
    if values.dtype == pl.Datetime or values.dtype == pl.Date:
        times = values.cast(pl.Datetime("us")).dt.epoch("s")
    else:
        numbers = values.cast(pl.Float64, strict=False)
        refuse(
            numbers.is_null() | (numbers != numbers.floor()).fill_null(True),
            values,
            path,
            first_row,
            "a timestamp that is not a whole number of seconds",
        )
        # Text goes straight to int64 where it can: float64 would round beyond 2^53.
        times = values.cast(pl.Int64, strict=False).fill_null(numbers.cast(pl.Int64, strict=False))
    refuse(times.is_null(), values, path, first_row, "a missing or too large timestamp")
    refuse(times < 0, values, path, first_row, "a negative timestamp")
    refuse(
        times > _LATEST,
        values,
        path,
        first_row,
        "a timestamp beyond the year 5000 (are these milliseconds? convert them to seconds)",
    )
    return times


def refuse(bad: pl.Series, values: pl.Series, path: Path, first_row: int, what: str) -> None:
    """Raises UserError naming the first row (from `first_row`) that is bad."""
    rows = bad.arg_true()
    if len(rows):
        raise UserError(
            f'{path}, row {rows[0] + first_row}, column "{values.name}": {what} '
            f"({values[int(rows[0])]!r}); {len(rows)} such rows in all."
        )
