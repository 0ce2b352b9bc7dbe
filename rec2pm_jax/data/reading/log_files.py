"""Reading CSV, TSV, Parquet and JSON-lines files, with errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

import polars as pl

from rec2pm_jax.data.polars_io import READ_ERRORS, plain_path
from rec2pm_jax.data.reading.column_checks import JSON_SUFFIXES
from rec2pm_jax.data.reading.report import LogReport
from rec2pm_jax.data.reading.text_lines import (
    choose_separator,
    count_column,
    find_bad_row,
    hint_separator,
    is_utf8,
    name_separator,
)
from rec2pm_jax.errors import UserError, nearest

BATCH = 1_000_000  # rows
_BLANK = "\0blank"  # a column, whether the line is blank
_SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
SUFFIXES = (*_SEPARATORS, ".parquet", *JSON_SUFFIXES)


def find_input_files(value: str, source: str) -> list[Path]:
    """Return the files that --input names, in the order of their names.

    Args:
      value: a file, a directory or a pattern.
      source: the name of the source, for errors.

    Raises:
      UserError: there are none.
    """
    if not value:
        raise UserError(f"--source={source} needs --input=FILE, DIR or PATTERN.")
    path = Path(value)
    if path.is_dir():
        found = [p for p in list_files(path) if _suffix(p) in SUFFIXES]
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob(value, recursive=True))
    if not found:
        raise UserError(f"--input={value} does not exist or holds no {', '.join(SUFFIXES)} file.")
    return found


def list_files(directory: Path) -> list[Path]:
    """Return the files below a directory, without those of prepared datasets and their workspaces."""
    ours = {file.parent for file in directory.rglob("dataset.json")}
    ours |= set(directory.rglob("*.preparing"))
    return sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and not ours.intersection(path.parents)
    )


def read_batches(
    path: Path,
    wanted: Sequence[tuple[str, str]],
    separator: str = "",
    report: LogReport | None = None,
) -> Iterator[tuple[pl.Series, pl.DataFrame]]:
    """Yield the row numbers and some columns of a file, about `BATCH` rows at a time.

    Rows are numbered as an editor shows them: the first line of a CSV file is its header. Every column
    of a text file is text. Blank lines of CSV files are left out.

    Args:
      path: the file.
      wanted: flag (or "") and column, for example ("user_column", "uid").
      separator: of CSV; empty: the usual one of the suffix, or another under which the columns exist.
      report: notes a separator that is not the usual one.

    Raises:
      UserError: unknown suffix, unknown column, or a file that cannot be read.
    """
    suffix = _check_suffix(path)
    if not path.stat().st_size:
        raise UserError(f"{path} is empty.")
    row = 2 if suffix in _SEPARATORS else 1
    used = ""
    try:
        if suffix in _SEPARATORS:
            usual = _SEPARATORS[suffix]
            used = separator or choose_separator(path, [column for _, column in wanted], usual)
            if report and used != usual:
                how = "as stated" if separator else "detected"
                report.note(path, {"separator": f"{name_separator(used)} ({how})"})
        frame = _scan(path, used)
        if suffix in JSON_SUFFIXES:
            frame = _scan_json(path, frame, [column for _, column in wanted])
        _check_columns(path, list(frame.collect_schema()), wanted, used)
        # Over all columns, because polars ignores surplus fields behind the last column that it reads.
        blank = pl.all_horizontal(pl.all().is_null()) if used else pl.lit(False)
        columns = [*dict.fromkeys(column for _, column in wanted), blank.alias(_BLANK)]
        for batch in frame.select(columns).collect_batches(chunk_size=BATCH, maintain_order=True):
            filled = ~batch[_BLANK]
            rows = pl.int_range(row, row + batch.height, eager=True)
            row += batch.height
            batch = batch.drop(_BLANK).filter(filled)
            if used and _has_replacements(batch) and not is_utf8(path):
                raise unreadable_error(path, UnicodeError("the text is not in UTF-8"), used)
            if filled.any():
                yield rows.filter(filled), batch
    except READ_ERRORS as error:
        raise unreadable_error(path, error, used) from error


def read_whole(path: Path) -> pl.DataFrame:
    """Read a whole table; every column of a text file is text.

    Raises:
      UserError: unknown suffix, or a file that cannot be read.
    """
    suffix = _check_suffix(path)
    separator = _SEPARATORS.get(suffix, "")
    try:
        frame = _scan(path, separator).collect()
        if separator and _has_replacements(frame) and not is_utf8(path):
            raise unreadable_error(path, UnicodeError("the text is not in UTF-8"), separator)
        return frame
    except pl.exceptions.NoDataError as error:
        raise UserError(f"{path} is empty.") from error
    except READ_ERRORS as error:
        raise unreadable_error(path, error, separator) from error


def unreadable_error(
    path: Path | str, error: BaseException, separator: str | None = None
) -> UserError:
    """Return a one-line error for a file that polars cannot read.

    Args:
      path: the file.
      error: what polars raised.
      separator: of a CSV file; None: it may be any file.
    """
    path = Path(path)
    is_text = bool(separator) or _suffix(path) in JSON_SUFFIXES
    found = find_bad_row(path, separator or "") if is_text and path.is_file() else ""
    if found:
        return UserError(f"{path}, {found}.")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read: {reason}")


def _scan(path: Path, separator: str) -> pl.LazyFrame:
    plain = plain_path(path)
    if separator:
        # Text that is not in UTF-8 does no harm in columns that are not read.
        return pl.scan_csv(plain, infer_schema=False, separator=separator, encoding="utf8-lossy")
    if path.suffix.lower() == ".parquet":
        return pl.scan_parquet(plain)
    return pl.scan_ndjson(plain, infer_schema_length=1000)


def _check_columns(
    path: Path, names: list[str], wanted: Sequence[tuple[str, str]], separator: str
) -> None:
    """Refuse a file that lacks a column or has it twice; `separator` is "" unless it is CSV."""
    for flag, name in wanted:
        what = f"--{flag}={name}" if flag else f'column "{name}"'
        if name not in names:
            raise UserError(
                f"{path} has no {what}; its columns are {', '.join(names)}.{nearest(name, names)}"
                + (hint_separator(path, names, separator) if separator else "")
            )
        if separator and (count := count_column(path, name, separator)) > 1:
            raise UserError(f"{path} has {count} columns named {name} ({what}); rename them.")


def _has_replacements(frame: pl.DataFrame) -> bool:
    """Return whether a text holds U+FFFD, which stands for bytes that are not in UTF-8."""
    found = frame.select((pl.col(pl.String).str.contains("\ufffd", literal=True)).any())
    return any(any(row) for row in found.rows())


def _scan_json(path: Path, frame: pl.LazyFrame, wanted: list[str]) -> pl.LazyFrame:
    """Return the file with numbers as text, so that it may write an id both ways."""
    schema = frame.collect_schema()
    if any(column not in schema for column in wanted):  # a key may appear late
        schema = pl.scan_ndjson(plain_path(path), infer_schema_length=None).collect_schema()
    simple = {n: t for n, t in schema.items() if not (t.is_float() or t.is_nested())}
    return pl.scan_ndjson(plain_path(path), schema=dict(schema) | dict.fromkeys(simple, pl.String))


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()


def _check_suffix(path: Path) -> str:
    if _suffix(path) not in SUFFIXES:
        raise UserError(f"{path}: unknown file type; known are {', '.join(SUFFIXES)}.")
    return _suffix(path)
