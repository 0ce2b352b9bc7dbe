"""Find the row of a publisher's text file that cannot be read, for the message of the error.

polars names neither the file nor the row. So after an error the files are read again, line by line.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from rec2pm_jax.data.reading.text_lines import raw_lines
from rec2pm_jax.data.reading.values import LATEST_TIMESTAMP

_WHOLE = r"\s*[+-]?[0-9]+\s*"


@dataclasses.dataclass(frozen=True)
class TextLayout:
    """The columns that a source reads from CSV or JSON-lines files.

    Attributes:
      types: of the columns; in the order of the file if that has no header. Without any, only the
        encoding is looked at, and the syntax of JSON.
      events: column of canonical events -> column of the file.
    """

    types: Mapping[str, type[pl.DataType]] = dataclasses.field(default_factory=dict)
    events: Mapping[str, str] = dataclasses.field(default_factory=dict)


def find_unreadable_row(paths: Sequence[Path], layout: TextLayout) -> str:
    """Return the file, the row and the problem of the first row that polars cannot read, or ""."""
    whole = [name for name, dtype in layout.types.items() if dtype == pl.Int64]
    for path, row, found in _rows(paths, layout):
        if isinstance(found, str):
            return f"{path}, row {row}: {found}."
        for name in whole:
            value = found.get(name)
            if value not in (None, "") and not re.fullmatch(_WHOLE, str(value)):
                return f'{path}, row {row}, column "{name}": not a whole number ({value!r}).'
    return ""


def find_bad_event(paths: Sequence[Path], layout: TextLayout, column: str) -> str:
    """Return the file, the row and the problem of the first row that is no event, or "".

    Args:
      paths: the files.
      layout: of the files.
      column: of canonical events, in which the row has no value or no possible time.
    """
    name = layout.events.get(column, "")
    for path, row, found in _rows(paths, layout) if name else ():
        if isinstance(found, str):
            continue
        value = found.get(name)
        if value is None or value == "":
            return f'{path}, row {row}, column "{name}": no value.'
        if column == "timestamp" and not _is_time(value):
            return f'{path}, row {row}, column "{name}": no possible time ({value!r}).'
    return ""


def _is_time(value: Any) -> bool:
    """Return whether a value is a number of seconds or milliseconds that events can have."""
    return bool(re.fullmatch(_WHOLE, str(value))) and 0 <= int(value) <= 1000 * LATEST_TIMESTAMP


def _rows(
    paths: Sequence[Path], layout: TextLayout
) -> Iterator[tuple[Path, int, dict[str, Any] | str]]:
    """Yield (file, row, values by column) of text files; a text in the place of values is a problem.

    Rows are counted as editors do, so the first row of a file with a header is row 2.
    """
    for path in paths:
        if not {".csv", ".tsv", ".jsonl"}.intersection(path.suffixes):
            continue
        parse = _parse_json if ".jsonl" in path.suffixes else _CsvParser(list(layout.types))
        try:
            for row, line in enumerate(raw_lines(path), 1):
                try:
                    values = parse(line.decode("utf-8-sig" if row == 1 else "utf-8").strip("\r\n"))
                except UnicodeDecodeError:
                    values = f"the text is not in UTF-8 ({line[:60]!r}); save the file as UTF-8"
                if values:
                    yield path, row, values
        except OSError:  # a damaged archive, which the error of polars tells
            continue


def _parse_json(line: str) -> dict[str, Any] | str:
    try:
        values = json.loads(line) if line.strip() else {}
    except ValueError as error:
        return f"no JSON ({error}; {line[:60]!r})"
    return values if isinstance(values, dict) else f"expected a JSON object, got {line[:60]!r}"


class _CsvParser:
    """Splits the lines of one file; the first may be a header."""

    def __init__(self, names: list[str]):
        self._names = names
        self._header: list[str] | None = None

    def __call__(self, line: str) -> dict[str, Any] | str:
        if not self._names or not line:
            return {}
        try:
            fields = next(csv.reader([line]), [])
        except csv.Error as error:
            return f"{error} ({line[:80]!r})"
        if self._header is None:
            has_header = set(self._names) <= set(fields)
            self._header = fields if has_header else self._names
            if has_header:
                return {}
        if len(fields) > len(self._header):
            return f"{len(fields)} fields, but {len(self._header)} are expected ({line[:80]!r})"
        return dict.fromkeys(self._header, "") | dict(zip(self._header, fields, strict=False))
