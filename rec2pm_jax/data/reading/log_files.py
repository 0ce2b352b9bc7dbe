"""Reading CSV, TSV, Parquet and JSON-lines files, with errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from glob import glob
from pathlib import Path

import polars as pl

from rec2pm_jax.data.polars_io import READ_ERRORS
from rec2pm_jax.errors import UserError, nearest

BATCH = 1_000_000  # rows
_JSON = (".jsonl", ".ndjson", ".json")
_SCANS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".csv": lambda path: pl.scan_csv(path, infer_schema=False),
    ".csv.gz": lambda path: pl.scan_csv(path, infer_schema=False),
    ".tsv": lambda path: pl.scan_csv(path, infer_schema=False, separator="\t"),
    ".tsv.gz": lambda path: pl.scan_csv(path, infer_schema=False, separator="\t"),
    ".parquet": pl.scan_parquet,
} | dict.fromkeys(_JSON, lambda path: pl.scan_ndjson(path, infer_schema_length=1000))


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
        found = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in _SCANS)
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob(value, recursive=True))
    if not found:
        raise UserError(f"--input={value} does not exist or holds no {', '.join(_SCANS)} file.")
    return found


def read_batches(path: Path, flags: Mapping[str, str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield some columns of a file, about `BATCH` rows at a time, with the number of the first row.

    Rows are numbered as an editor shows them: the first line of a CSV file is its header. Every column
    of a text file is text.

    Args:
      path: the file.
      flags: flag -> column, for example {"user_column": "uid"}.

    Raises:
      UserError: unknown suffix, unknown column, or a file that cannot be read.
    """
    suffix = _check_suffix(path)
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
    except READ_ERRORS as error:
        raise unreadable_error(path, error) from error


def read_whole(path: Path) -> pl.DataFrame:
    """Read a whole table; every column of a text file is text.

    Raises:
      UserError: unknown suffix, or a file that cannot be read.
    """
    suffix = _check_suffix(path)
    try:
        return _SCANS[suffix](path).collect()
    except pl.exceptions.NoDataError as error:
        raise UserError(f"{path} is empty.") from error
    except READ_ERRORS as error:
        raise unreadable_error(path, error) from error


def unreadable_error(path: Path | str, error: BaseException) -> UserError:
    """Return a one-line error for a file that polars cannot read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read: {reason}")


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()


def _check_suffix(path: Path) -> str:
    if _suffix(path) not in _SCANS:
        raise UserError(f"{path}: unknown file type; known are {', '.join(_SCANS)}.")
    return _suffix(path)
