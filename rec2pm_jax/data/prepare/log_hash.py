"""The hash of a log, by which an appended log is recognized.

It is a sum over rows, so it depends neither on their order nor on files and formats. It covers the raw
ids, times, types and orders of all rows before the filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data.hashing import hash_strings, splitmix64
from rec2pm_jax.data.prepare.column_files import ColumnFiles

# Odd numbers: multiplication by them is invertible modulo 2^64.
_MULTIPLIERS = {
    "user": np.uint64(0x9E3779B97F4A7C15),
    "item": np.uint64(0xC2B2AE3D27D4EB4F),
    "time": np.uint64(0x165667B19E3779F9),
    "type": np.uint64(0xD6E8FEB86659FD93),
    "fraction": np.uint64(0xFF51AFD7ED558CCD),
    "order": np.uint64(0xC4CEB9FE1A85EC53),
}


class LogHash(NamedTuple):
    """Sums over rows, modulo 2^64.

    Attributes:
      rows: number of rows.
      low, high: sums of two hashes of each row.
    """

    rows: int = 0
    low: int = 0
    high: int = 0

    def __add__(self, other: tuple) -> LogHash:
        """Return the hash of the rows of both."""
        rows, low, high = other
        return LogHash(self.rows + rows, (self.low + low) % 2**64, (self.high + high) % 2**64)

    @property
    def hex(self) -> str:
        """32 hexadecimal digits."""
        return f"{self.low:016x}{self.high:016x}"


def hash_rows(columns: Mapping[str, np.ndarray], hashes: Mapping[str, np.ndarray]) -> LogHash:
    """Return the hash of some rows.

    Args:
      columns: codes of user, item and perhaps type; time and perhaps fraction and order; [n] each.
      hashes: uint64, the hash of each code of user, item and type.
    """
    state = np.zeros(len(columns["time"]), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        for name, values in columns.items():
            known = hashes[name][values] if name in hashes else values.astype(np.int64)
            state += known.astype(np.uint64) * _MULTIPLIERS[name]
        low = splitmix64(state)
        high = splitmix64(low)
        return LogHash(len(state), int(low.sum(dtype=np.uint64)), int(high.sum(dtype=np.uint64)))


def hash_frame(frame: pl.DataFrame) -> LogHash:
    """Return the hash of canonical events (`schema.py`)."""
    names = {"user": "user", "item": "item", "type": "event_type"}
    columns, hashes = {"time": frame["timestamp"].to_numpy()}, {}
    for name, column in names.items():
        if column in frame.columns:
            texts = frame[column].unique().sort()
            hashes[name] = hash_strings(texts)
            columns[name] = frame[column].rank("dense").to_numpy().astype(np.int64) - 1
    columns |= {n: frame[n].to_numpy() for n in ("fraction", "order") if n in frame.columns}
    return hash_rows(columns, hashes)


def hash_events(
    events: ColumnFiles, texts: Mapping[str, pl.Series], rows: int, first: int = 0
) -> LogHash:
    """Return the hash of encoded events.

    Args:
      events: columns as `encode.py` writes them.
      texts: the texts of the codes of user, item and type.
      rows: events to read at a time.
      first: rows before this one belong to earlier logs and do not count.
    """
    hashes = {name: hash_strings(found) for name, found in texts.items()}
    total, done = LogHash(), 0
    for chunk in events.chunks(rows):
        skip = max(0, first - done)
        done += len(chunk["time"])
        total += hash_rows({name: values[skip:] for name, values in chunk.items()}, hashes)
    return total
