"""Lines of text files: encodings, the header of a CSV file, and the row that polars cannot read."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rec2pm_jax.errors import UserError

SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_NAMES = {"\t": "tab"}


def read_lines(path: Path) -> list[str]:
    r"""Return the lines of a file in UTF-8 or, if it is not valid UTF-8, latin-1.

    Lines end with \n or \r\n. Other characters that Unicode counts as line breaks belong to a line.

    Raises:
      OSError: the file cannot be read.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def is_utf8(path: Path) -> bool:
    """Return whether a text file, plain or gzipped, is in UTF-8.

    Raises:
      OSError: the file cannot be read.
    """
    for line in raw_lines(path):
        try:
            line.decode()
        except UnicodeDecodeError:
            return False
    return True


def read_header(path: Path) -> str:
    """Return the first line of a text file, plain or gzipped.

    Raises:
      UserError: it is not in UTF-8.
      OSError: the file cannot be read.
    """
    line = next(raw_lines(path), b"")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is in UTF-16; save it as UTF-8.")
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"{path}, row 1: the text is not in UTF-8; save the file as UTF-8."
        ) from None


def choose_separator(path: Path, wanted: Sequence[str], usual: str) -> str:
    """Return the separator under which the header of a CSV file has the wanted columns.

    Args:
      path: the file.
      wanted: the columns.
      usual: the separator to prefer, and to return if none has all the columns.

    Raises:
      UserError: the header is not in UTF-8.
    """
    header = read_header(path)
    for separator in (usual, *SEPARATORS):
        if set(wanted) <= set(_split_header(header, separator)):
            return separator
    return usual


def count_column(path: Path, name: str, separator: str) -> int:
    """Return how many columns of a CSV file have a name."""
    return _split_header(read_header(path), separator).count(name)


def hint_separator(path: Path, names: Sequence[str], separator: str) -> str:
    """Return a hint for a header whose column names run together, or ""."""
    header = read_header(path)
    most = max(SEPARATORS, key=lambda s: len(_split_header(header, s)))
    if len(names) > 1 or most == separator or len(_split_header(header, most)) < 2:
        return ""
    return f" Columns seem to be separated by {name_separator(most)}; see --separator."


def name_separator(separator: str) -> str:
    """Return a separator as people call it."""
    return _SEPARATOR_NAMES.get(separator, repr(separator))


def find_bad_row(path: Path, separator: str = "") -> str:
    """Return what is wrong with the first bad row of a CSV or JSON-lines file.

    Args:
      path: the file, plain or gzipped.
      separator: of CSV; empty: the file has JSON lines.

    Returns:
      The row and the problem, or "" if nothing is found.
    """
    lines = raw_lines(path)
    try:
        return _find_bad_csv_row(lines, separator) if separator else _find_bad_json_row(lines)
    except OSError:
        return ""


def raw_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, plain or gzipped, with their line breaks.

    Raises:
      OSError: the file cannot be read.
    """
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        try:
            yield from file
        except (zlib.error, EOFError) as error:
            raise OSError(f"damaged gzip file ({error})") from error


def _split_header(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=separator), [])
    except csv.Error:
        return []


def _find_bad_json_row(lines: Iterable[bytes]) -> str:
    for row, line in enumerate(lines, 1):
        try:
            value = json.loads(line.decode()) if line.strip() else {}
        except UnicodeDecodeError:
            return f"row {row}: the text is not in UTF-8 ({line[:60]!r})"
        except ValueError as error:
            return f"row {row}: no JSON ({error}; {line.decode().strip()[:60]!r})"
        if not isinstance(value, dict):
            return f"row {row}: expected a JSON object, got {line.decode().strip()[:60]!r}"
    return ""


def _find_bad_csv_row(lines: Iterable[bytes], separator: str) -> str:
    last = b""
    broken = 0  # the row that is not in UTF-8

    def decoded() -> Iterator[str]:
        nonlocal last, broken
        for row, last in enumerate(lines, 1):  # noqa: B007 (read below)
            try:
                yield last.decode()
            except UnicodeDecodeError:
                broken = row
                return

    reader = csv.reader(decoded(), delimiter=separator, strict=True)
    width = first = 0
    try:
        for fields in reader:
            first, previous = reader.line_num, first
            width = width or len(fields)
            text = last.decode().rstrip("\r\n")[:80]
            if len(fields) > width:
                return f"row {first}: {len(fields)} fields, but the header has {width} ({text!r})"
            if first - previous == 1 and last.count(b'"') % 2:
                return f"row {first}: a quotation mark without its other half ({text!r})"
    except csv.Error as error:
        if not broken:
            return f"row {first + 1}: {error} (a quotation mark without its other half?)"
    if broken:
        return f"row {broken}: the text is not in UTF-8 ({last[:60]!r}); save the file as UTF-8"
    return ""
