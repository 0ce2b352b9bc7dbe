"""Columns of a user's file as ids and numbers, with errors that name file, row and column."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec2pm_jax.data.schema import LATEST_TIMESTAMP
from rec2pm_jax.errors import UserError, nearest


def get_column(frame: pl.DataFrame, name: str, path: Path) -> pl.Series:
    """Return a column of a file.

    Raises:
      UserError: there is no such column; the message names the existing ones.
    """
    if name not in frame.columns:
        raise UserError(
            f'{path} has no column "{name}"; its columns are {", ".join(frame.columns)}.'
            f"{nearest(name, frame.columns)}"
        )
    return frame[name]


def to_ids(values: pl.Series, path: Path, first_row: int = 1) -> pl.Series:
    """Return user or item ids as strings.

    Args:
      values: integers or text.
      path: the file, for errors.
      first_row: the number of the first row, for errors.

    Raises:
      UserError: null or empty, negative, fractional or nested ids.
    """
    if not (values.dtype.is_integer() or values.dtype in (pl.String, pl.Categorical)):
        raise UserError(
            f'{path}, column "{values.name}": ids must be integers or text, not {values.dtype}.'
        )
    texts = values.cast(pl.String)
    empty = texts.is_null() | (texts == "").fill_null(True)
    refuse_rows(empty, texts, path, first_row, "an empty id")
    if values.dtype.is_integer():
        refuse_rows(values < 0, values, path, first_row, "a negative id")
    return texts


def to_whole_numbers(values: pl.Series, path: Path, first_row: int = 1) -> pl.Series:
    """Return whole numbers as int64.

    Args:
      values: numbers, or text that states them.
      path: the file, for errors.
      first_row: the number of the first row, for errors.

    Raises:
      UserError: a value is not a whole number.
    """
    numbers = values.cast(pl.Int64, strict=False)
    bad = numbers.is_null()
    if values.dtype.is_float():
        bad = bad | (values != values.floor())
    refuse_rows(bad, values, path, first_row, "not a whole number")
    return numbers


def to_seconds(values: pl.Series, path: Path, first_row: int = 1) -> pl.Series:
    """Return timestamps as int64 seconds since 1970.

    Args:
      values: integers, whole floats, text that states them, or datetimes.
      path: the file, for errors.
      first_row: the number of the first row, for errors.

    Raises:
      UserError: null, negative or fractional timestamps.
    """
    if values.dtype == pl.Datetime or values.dtype == pl.Date:
        times = values.cast(pl.Datetime("us")).dt.epoch("s")
    else:
        numbers = values.cast(pl.Float64, strict=False)
        refuse_rows(
            numbers.is_null() | (numbers != numbers.floor()).fill_null(True),
            values,
            path,
            first_row,
            "a timestamp that is not a whole number of seconds",
        )
        # Text becomes int64 directly where it can: float64 would round beyond 2^53.
        times = values.cast(pl.Int64, strict=False).fill_null(numbers.cast(pl.Int64, strict=False))
    refuse_rows(times.is_null(), values, path, first_row, "a missing or too large timestamp")
    refuse_rows(times < 0, values, path, first_row, "a negative timestamp")
    refuse_rows(
        times > LATEST_TIMESTAMP,
        values,
        path,
        first_row,
        "a timestamp beyond the year 5000 (are these milliseconds? convert them to seconds)",
    )
    return times


def refuse_rows(bad: pl.Series, values: pl.Series, path: Path, first_row: int, what: str) -> None:
    """Refuse a column that has bad rows.

    Args:
      bad: bool [n], the rows to refuse.
      values: the column.
      path: the file, for the error.
      first_row: the number of the first row, for the error.
      what: what is wrong, for the error.

    Raises:
      UserError: any row is bad; the message names the first.
    """
    rows = bad.arg_true()
    if len(rows):
        raise UserError(
            f'{path}, row {rows[0] + first_row}, column "{values.name}": {what} '
            f"({values[int(rows[0])]!r}); {len(rows)} such rows in all."
        )
