"""What polars needs to read and write files: plain paths, its errors, and a writer of Parquet."""

from __future__ import annotations

import glob
import io
from pathlib import Path

import polars as pl

# polars raises these for a damaged file. A PanicException comes from its Rust code.
READ_ERRORS = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)


def plain_path(path: Path | str) -> str:
    """Return a path as polars must be given it, which takes paths for patterns.

    >>> plain_path("log[1].csv")
    'log[[]1].csv'
    """
    return glob.escape(str(path))


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a table that fits in memory.

    polars raises its own errors when the disk is full. Writing the bytes here raises OSError.

    Args:
      frame: the table.
      path: the file to write.

    Raises:
      OSError: the disk is full or read-only.
    """
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    path.write_bytes(buffer.getbuffer())
