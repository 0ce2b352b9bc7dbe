"""Row filters of a log: `--drop=COLUMN=REGEX` and `--keep=COLUMN=REGEX`."""

from __future__ import annotations

import dataclasses

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RowFilter:
    """A filter of rows by the text of one column.

    Attributes:
      flag: drop or keep.
      column: the column.
      pattern: regular expression of Rust's regex crate, found anywhere in the text. A row without a
        value does not match.
    """

    flag: str
    column: str
    pattern: str

    @classmethod
    def parse(cls, flag: str, text: str) -> RowFilter:
        """Read "COLUMN=REGEX".

        Raises:
          UserError: the text has another form, or the pattern is no regular expression.
        """
        column, equals, pattern = text.partition("=")
        if not (column and equals and pattern):
            raise UserError(f"--{flag}={text}: write COLUMN=REGEX, for example InvoiceNo=^C.")
        try:
            pl.Series(["x"]).str.contains(pattern)
        except pl.exceptions.PolarsError as error:
            reason = (str(error).splitlines() or [""])[-1]
            raise UserError(f"--{flag}={text} is no regular expression ({reason}).") from error
        return cls(flag, column, pattern)

    @property
    def name(self) -> str:
        """The filter as it was given."""
        return f"--{self.flag}={self.column}={self.pattern}"

    def stays(self, frame: pl.DataFrame) -> pl.Series:
        """Return whether each row stays: bool [n]."""
        found = frame[self.column].cast(pl.String).str.contains(self.pattern).fill_null(False)
        return ~found if self.flag == "drop" else found


def parse_row_filters(options: PrepareOptions) -> list[RowFilter]:
    """Return the filters of the options, --drop first.

    Raises:
      UserError: as `RowFilter.parse`.
    """
    return [
        RowFilter.parse(flag, text)
        for flag in ("drop", "keep")
        for text in getattr(options, flag) or ()
    ]
