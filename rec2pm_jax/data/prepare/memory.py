"""The memory that a preparation may use for events (`--max_memory`)."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import polars as pl

from rec2pm_jax.errors import UserError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_MAX_ROWS = 4_000_000  # at a time; more brings no speed
_BYTES_PER_ROW = 1000  # of the limit per row held at a time; ordering takes most of it
_BYTES_PER_ORDERED_EVENT = 200  # of the largest partition while it is ordered, measured


@dataclasses.dataclass(frozen=True)
class MemoryLimit:
    """The memory that a preparation may use for events.

    Attributes:
      bytes: the limit.
    """

    bytes: int

    @classmethod
    def parse(cls, text: str) -> MemoryLimit:
        """Read a number of bytes with an optional suffix.

        Raises:
          UserError: the text is no number of bytes.

        >>> MemoryLimit.parse("4GiB").bytes, MemoryLimit.parse("500MB").bytes
        (4294967296, 500000000)
        """
        match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) *([kmg]i?)?b?", text.strip().lower())
        try:
            limit = cls(int(float(match[1]) * _UNITS[match[2] or ""]))  # type: ignore[index]
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"--max_memory={text} is not a number of bytes; write for example 4GiB or 500MB."
            ) from None
        if limit.bytes < _BYTES_PER_ROW:
            raise UserError(f"--max_memory={text} is less than 1kB; write for example 500MB.")
        return limit

    @property
    def rows(self) -> int:
        """Events to hold at a time."""
        return max(1, min(_MAX_ROWS, self.bytes // _BYTES_PER_ROW))

    def check_largest_user(self, users: pl.Series, counts: np.ndarray) -> None:
        """Refuse a user whose events cannot be ordered within the limit.

        Args:
          users: raw ids.
          counts: int64 [users], events of each.

        Raises:
          UserError: names the user with the most events, and the memory it needs.
        """
        largest = int(counts.argmax())
        needed = int(counts[largest]) * _BYTES_PER_ORDERED_EVENT
        if needed > self.bytes:
            raise UserError(
                f"User {users[largest]!r} has {counts[largest]} events, which are ordered in memory "
                f"and need {needed / 2**30:.1f} GiB; raise --max_memory, or leave the user out (is it "
                "a placeholder for unknown users, or a robot?)."
            )
