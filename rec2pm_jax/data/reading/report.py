"""What was found while a log was read: rows that cannot be used, and facts for `dataset.json`.

A bad row does not end the reading. So the error at the end states how many such rows all files have,
and `--skip_invalid` can leave them out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl

from rec2pm_jax.errors import UserError


@dataclasses.dataclass
class Issue:
    """A kind of bad row.

    Attributes:
      column: where the bad value is.
      what: what is wrong with it.
      first: file, row, column, what and value of the first such row.
      rows: how many there are.
    """

    column: str
    what: str
    first: str
    rows: int = 0


@dataclasses.dataclass
class LogReport:
    """Rows and facts of the files of a log, or of some of them.

    Attributes:
      rows: rows after the row filters.
      filtered: rows that row filters left out, by filter.
      issues: kinds of bad rows, in the order of their appearance.
      notes: facts that all files must share, such as the unit of time.
      counts: rows with ids that are worth a note, by what they have.
      id_types: types of the user column.
    """

    rows: int = 0
    filtered: dict[str, int] = dataclasses.field(default_factory=dict)
    issues: list[Issue] = dataclasses.field(default_factory=list)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    id_types: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict) -> LogReport:
        """Return the report whose `dataclasses.asdict` is `values`."""
        return cls(**values | {"issues": [Issue(**issue) for issue in values["issues"]]})

    @property
    def invalid_rows(self) -> int:
        """Number of bad rows; each counts for the first thing that is wrong with it."""
        return sum(issue.rows for issue in self.issues)

    def find_issue(self, column: str, what: str, first: str) -> Issue:
        """Return the entry of a kind of bad row, made with `first` if it is new."""
        for issue in self.issues:
            if (issue.column, issue.what) == (column, what):
                return issue
        self.issues.append(Issue(column, what, first))
        return self.issues[-1]

    def note(self, path: Path | str, notes: dict[str, str]) -> None:
        """Add facts of a file.

        Raises:
          UserError: earlier files have others.
        """
        for name, text in notes.items():
            if self.notes.setdefault(name, text) != text:
                raise UserError(
                    f"{path}: {name} is {text}, but earlier files have {self.notes[name]}; prepare "
                    "files of one kind, or convert them."
                )

    def merge(self, path: Path | str, other: LogReport) -> None:
        """Add the report of another file.

        Raises:
          UserError: as `note`.
        """
        self.rows += other.rows
        self.note(path, other.notes)
        for mine, more in ((self.filtered, other.filtered), (self.counts, other.counts)):
            for name, rows in more.items():
                mine[name] = mine.get(name, 0) + rows
        for issue in other.issues:
            self.find_issue(issue.column, issue.what, issue.first).rows += issue.rows
        self.id_types += [name for name in other.id_types if name not in self.id_types]

    def check(self, skip_invalid: bool, max_share: float) -> None:
        """Refuse a log with bad rows, or with too many of them.

        Args:
          skip_invalid: whether bad rows are left out.
          max_share: of all rows, that may be bad then.

        Raises:
          UserError: names the first bad row, and how many there are in all files.
        """
        if not self.issues:
            return
        issue, bad = self.issues[0], self.invalid_rows
        others = f" and {bad - issue.rows:,} other invalid rows" if bad > issue.rows else ""
        text = f"{issue.first}; {issue.rows:,} such rows{others} among {self.rows:,} in all files."
        if not skip_invalid:
            raise UserError(f"{text} Correct them, or leave them out with --skip_invalid.")
        if bad > max_share * self.rows:
            raise UserError(
                f"{text} That is a share of {bad / self.rows:.2%}, and --max_invalid_share is "
                f"{max_share:.2%}; raise it if these rows may be left out."
            )

    def dropped(self) -> dict[str, int]:
        """Return the rows that were left out, by reason, for `dataset.json`."""
        invalid: dict[str, int] = {}
        for issue in self.issues:
            name = f"invalid {issue.column}"
            invalid[name] = invalid.get(name, 0) + issue.rows
        return self.filtered | invalid

    def all_notes(self) -> dict[str, str]:
        """Return the notes for `dataset.json`."""
        notes = dict(self.notes)
        if self.counts:
            found = [f"{rows:,} rows have {text}" for text, rows in sorted(self.counts.items())]
            notes["ids"] = "; ".join(found)
        if len(self.id_types) > 1:
            notes["user_id_types"] = f"{', '.join(sorted(self.id_types))}, compared as text"
        return notes


class BatchCheck:
    """Marks the bad rows of a batch, and counts them in a report."""

    def __init__(self, report: LogReport, path: Path, rows: pl.Series):
        """Begin a batch.

        Args:
          report: counts the rows.
          path: the file, for errors.
          rows: int64 [n], the number of each row in the file.
        """
        self.report, self.path = report, path
        self._rows = rows
        self._bad = pl.repeat(False, len(rows), dtype=pl.Boolean, eager=True)
        report.rows += len(rows)

    @property
    def good(self) -> pl.Series:
        """The rows without a bad value: bool [n]."""
        return ~self._bad

    def refuse(self, bad: pl.Series, values: pl.Series, what: str) -> None:
        """Mark rows of a column.

        Args:
          bad: bool [n], the rows; null counts as false.
          values: the column.
          what: what is wrong, for the error.
        """
        bad = bad.fill_null(False) & ~self._bad
        count = int(bad.sum())
        if not count:
            return
        at = int(bad.arg_max() or 0)
        first = (
            f'{self.path}, row {self._rows[at]}, column "{values.name}": {what} ({values[at]!r})'
        )
        self.report.find_issue(values.name, what, first).rows += count
        self._bad = self._bad | bad

    def count(self, rows: pl.Series, note: str) -> None:
        """Count rows that are worth a note.

        Args:
          rows: bool [n], the rows; null counts as false.
          note: what they have.
        """
        found = int(rows.sum() or 0)
        if found:
            self.report.counts[note] = self.report.counts.get(note, 0) + found
