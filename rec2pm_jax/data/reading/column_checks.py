"""Columns of a user's file as ids and numbers, by the rules of `values.py`."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from rec2pm_jax.data.reading import values as rules
from rec2pm_jax.data.reading.report import BatchCheck, LogReport
from rec2pm_jax.errors import UserError, nearest

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_NULL_TEXTS = ("nan", "null", "none", "<na>")


def check_whole(frame: pl.DataFrame, path: Path, first_row: int = 1) -> BatchCheck:
    """Return the check of rows that are refused at once; `raise_issues` ends it.

    Args:
      frame: the rows.
      path: the file, for errors.
      first_row: the number of the first row in the file.
    """
    rows = pl.int_range(first_row, first_row + frame.height, eager=True)
    return BatchCheck(LogReport(), path, rows)


def raise_issues(check: BatchCheck) -> None:
    """Refuse a table that is read at once if it has bad rows.

    Raises:
      UserError: names the first bad row.
    """
    if check.report.issues:
        issue = check.report.issues[0]
        raise UserError(f"{issue.first}; {issue.rows:,} such rows in all.")


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


def to_ids(values: pl.Series, check: BatchCheck, id_type: str = "text") -> pl.Series:
    """Return user or item ids as strings: `values.parse_id` of a column.

    Args:
      values: integers, whole floats or text.
      check: marks null, empty, negative, fractional and nested ids.
      id_type: "text", or "int", which reads the text "7.0" as "7".

    Raises:
      UserError: a column of another type.
    """
    dtype = values.dtype
    if dtype == pl.Null:
        values, dtype = values.cast(pl.String), pl.String()
    if not (dtype.is_integer() or dtype.is_float() or dtype in (pl.String, pl.Categorical)):
        raise UserError(
            f'{check.path}, column "{values.name}": ids must be integers or text, not {dtype}.'
        )
    if dtype.is_float():
        check.refuse(values.is_null() | values.is_nan(), values, "an empty id")
    texts = values.cast(pl.String)
    check.refuse(texts.is_null() | (texts == ""), values, "an empty id")
    if dtype.is_integer() or dtype.is_float():
        # Unsigned integers may exceed int64: ids are often hashes.
        numbers = values if dtype.is_integer() else to_whole_numbers(values, check)
        check.refuse(numbers < 0, values, "a negative id")
        return numbers.cast(pl.String)
    if check.path.suffix.lower() in JSON_SUFFIXES:  # polars reads nested values as their text
        check.refuse(_find_nested(texts), values, "a nested id")
    name = values.name
    if id_type == "int":
        texts = texts.str.replace(rules.WHOLE_FLOAT, "$1")
    check.count(
        texts.str.contains(rules.WHOLE_FLOAT),
        f"a {name} that ends in .0 (--id_type=int reads 7.0 as 7)",
    )
    check.count(
        texts.str.to_lowercase().is_in(_NULL_TEXTS),
        f"the {name} nan, null or none, which is taken as an id (see --drop)",
    )
    return texts


def to_whole_numbers(values: pl.Series, check: BatchCheck) -> pl.Series:
    """Return whole numbers as int64: `values.parse_whole_number` of a column.

    Args:
      values: numbers, or text that states them.
      check: marks other values.
    """
    whole, part = split_numbers(values)
    check.refuse(whole.is_null() | (part != 0), values, "not a whole number")
    return whole


def to_seconds(values: pl.Series, check: BatchCheck) -> pl.Series:
    """Return timestamps as int64 seconds since 1970.

    Args:
      values: integers, whole floats, text that states them, or datetimes.
      check: marks null, negative or fractional timestamps.
    """
    if values.dtype == pl.Datetime or values.dtype == pl.Date:
        times = values.cast(pl.Datetime("us")).dt.epoch("s")
        check.refuse(times.is_null(), values, "a missing timestamp")
    else:
        times, part = split_numbers(values)
        what = "a timestamp that is not a whole number of seconds"
        check.refuse(times.is_null() | (part != 0), values, what)
    check.refuse(times < 0, values, "a negative timestamp")
    check.refuse(
        times > rules.LATEST_TIMESTAMP,
        values,
        "a timestamp beyond the year 5000 (are these milliseconds? convert them to seconds)",
    )
    return times


def split_numbers(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return the whole parts of numbers and the rest in billionths.

    Args:
      values: numbers, or text that states them.

    Returns:
      int64 [n], null where a value is no number; int64 [n].
    """
    if values.dtype.is_float():
        return _split_floats(values)
    whole = values.cast(pl.Int64, strict=False)
    part = pl.repeat(0, len(values), dtype=pl.Int64, eager=True)
    if values.dtype != pl.String or not whole.is_null().any():
        return whole, part
    groups = values.str.extract_groups(rules.NUMBER).struct.unnest()
    digits = groups["fraction"].fill_null("").str.pad_end(9, "0").str.head(9)
    whole = whole.fill_null(groups["whole"].cast(pl.Int64, strict=False))
    part = digits.cast(pl.Int64, strict=False).fill_null(0)
    scientific = whole.is_null() & values.str.contains(rules.SCIENTIFIC).fill_null(False)
    if scientific.any():
        other, rest = _split_floats(values.cast(pl.Float64, strict=False))
        whole = other.zip_with(scientific, whole)
        part = rest.zip_with(scientific, part)
    return whole, part


def _split_floats(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    values = values.cast(pl.Float64)
    values = values.set((~(values.abs() < 2**53)).fill_null(True), None)
    whole = values.floor()
    part = ((values - whole) * 1e6).round().clip(0, 999_999)
    return whole.cast(pl.Int64), (part.fill_null(0) * 1000).cast(pl.Int64)


def _find_nested(texts: pl.Series) -> pl.Series:
    """Return which texts are JSON objects or lists: bool [n]."""
    nested = texts.str.contains(r"^(\{.*\}|\[.*\])$").fill_null(False)
    for row in nested.arg_true():
        try:
            json.loads(texts[int(row)])
        except ValueError:
            nested[int(row)] = False
    return nested
