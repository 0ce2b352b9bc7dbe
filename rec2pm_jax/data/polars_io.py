"""Errors of polars about damaged files, and a Parquet writer that reports a full disk."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

# polars raises these for a damaged file. A PanicException comes from its Rust code.
READ_ERRORS = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)


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
