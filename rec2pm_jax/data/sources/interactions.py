"""Your own log as CSV, TSV, Parquet or JSON-lines; flags name its columns.

--input is a file, a directory of such files or a pattern ("logs/*.parquet"). Files are read in the
order of their names. The columns are

    --user_column, --item_column
    --time_column     see `data/reading/times.py` for units and zones
    --type_column     optional, the event type
    --order_column    optional, a number that orders a user's events of equal time
    --title_column, --category_column    optional, what the item of the row is

A log without times has an order only: --time_column= --order_column=position. Ties are shuffled, unless
--ties=keep states that the order of the file is meaningful.

An item's title is that of the first row that states one, and its category likewise. Texts that differ
from it are counted as a note.

Ids are compared as text: the number 7 and the text "7" are one id. A row that equals another one in
every column is an event, too; `dataset.json` counts such rows as duplicate_rows. The rules for single
values are in `data/reading/values.py`. A row that cannot be used ends the preparation once all files
are read, unless --skip_invalid leaves it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading.column_checks import to_ids, to_whole_numbers
from rec2pm_jax.data.reading.log_files import find_input_files, read_batches
from rec2pm_jax.data.reading.report import BatchCheck, LogReport
from rec2pm_jax.data.reading.row_filters import RowFilter, parse_row_filters
from rec2pm_jax.data.reading.times import TimeReader, TimeRules
from rec2pm_jax.data.reading.values import ID_TYPES
from rec2pm_jax.data.schema import Interactions, empty_items
from rec2pm_jax.data.sources.source import Source
from rec2pm_jax.errors import UserError

_COLUMNS = ("user_column", "item_column", "time_column", "type_column", "order_column")
_FACTS = {"title_column": "title", "category_column": "category"}


def load(options: PrepareOptions) -> Interactions:
    """Open the files.

    Raises:
      UserError: a file is missing, a column is unknown, or, while reading, a value is wrong.
    """
    options = options.with_defaults()
    paths = find_input_files(options.input, "interactions")
    log = LogReader.of(options)
    dropped: dict[str, int] = {}
    notes: dict[str, object] = {}
    items = _ItemFacts()

    def frames() -> Iterator[pl.DataFrame]:
        report = LogReport()
        for frame in log.frames(paths, report):
            items.add(frame)
            yield frame
        report.check(options.skip_invalid, options.max_invalid_share)
        dropped.update(report.dropped())
        notes.update(report.all_notes() | items.notes())

    return Interactions(
        frames(),
        items.table,
        has_times=bool(options.time_column),
        dropped=dropped,
        notes=notes,
    )


@dataclasses.dataclass(frozen=True)
class LogReader:
    """How the files of a log are read.

    Attributes:
      columns: flag -> column.
      filters: which rows are read.
      times: how times are written.
      id_type: "text" or "int".
      separator: of CSV files; empty: detected.
      skip_invalid: whether bad rows are left out.
    """

    columns: dict[str, str]
    filters: list[RowFilter]
    times: TimeRules
    id_type: str
    separator: str
    skip_invalid: bool

    @classmethod
    def of(cls, options: PrepareOptions) -> LogReader:
        """Return the reader that the options describe.

        Raises:
          UserError: an option has no meaning.
        """
        flags = (*_COLUMNS, *_FACTS)
        columns = {flag: getattr(options, flag) for flag in flags if getattr(options, flag)}
        for flag in ("user_column", "item_column"):
            if flag not in columns:
                raise UserError(f"--{flag} is empty; name a column.")
        if "time_column" not in columns and "order_column" not in columns:
            raise UserError("Give --time_column or, for a log without times, --order_column.")
        if options.id_type not in ID_TYPES:
            raise UserError(f"--id_type={options.id_type} is unknown; choose text or int.")
        if len(options.separator or "") > 1 and options.separator != "\\t":
            raise UserError(f"--separator={options.separator} is not one character.")
        if not 0 <= options.max_invalid_share <= 1:
            raise UserError(f"--max_invalid_share={options.max_invalid_share} must be from 0 to 1.")
        return cls(
            columns,
            parse_row_filters(options),
            TimeRules.of(options),
            options.id_type,
            (options.separator or "").replace("\\t", "\t"),
            options.skip_invalid,
        )

    def frames(self, paths: Iterable[Path], report: LogReport) -> Iterator[pl.DataFrame]:
        """Yield the canonical events of files, without bad rows.

        Unless bad rows are skipped, nothing is yielded after the first one, but they are counted.

        Args:
          paths: the files.
          report: is filled with what is found.

        Raises:
          UserError: a file cannot be read, or is of another kind than earlier ones.
        """
        wanted = [*self.columns.items(), *((f.flag, f.column) for f in self.filters)]
        for path in paths:
            times = TimeReader(path, self.times)
            for rows, frame in read_batches(path, wanted, self.separator, report):
                for row_filter in self.filters:
                    stays = row_filter.stays(frame)
                    left_out = report.filtered.get(row_filter.name, 0) + int((~stays).sum())
                    report.filtered[row_filter.name] = left_out
                    frame, rows = frame.filter(stays), rows.filter(stays)
                check = BatchCheck(report, path, rows)
                canonical = self._to_canonical(frame, times, check)
                report.note(path, times.notes())
                user_type = str(frame[self.columns["user_column"]].dtype)
                if user_type not in report.id_types:
                    report.id_types.append(user_type)
                if self.skip_invalid or not report.issues:
                    yield canonical.filter(check.good)

    def _to_canonical(
        self, frame: pl.DataFrame, times: TimeReader, check: BatchCheck
    ) -> pl.DataFrame:
        def ids(flag: str, id_type: str = "text") -> pl.Series:
            return to_ids(frame[self.columns[flag]], check, id_type)

        columns = {
            "user": ids("user_column", self.id_type),
            "item": ids("item_column", self.id_type),
        }
        if "time_column" in self.columns:
            columns |= times.columns(frame[self.columns["time_column"]], check)
        if "order_column" in self.columns:
            order = to_whole_numbers(frame[self.columns["order_column"]], check)
            # Without times the order replaces them; with times it decides among equal ones.
            columns["order" if "time_column" in self.columns else "timestamp"] = order
        if "type_column" in self.columns:
            columns["event_type"] = ids("type_column")
        for flag, name in _FACTS.items():
            if flag in self.columns:
                texts = frame[self.columns[flag]].cast(pl.String).str.strip_chars()
                columns[name] = texts.replace("", None)
        return pl.DataFrame(columns)


class _ItemFacts:
    """Titles and categories of items, as the rows of a log state them: the first of each counts."""

    def __init__(self) -> None:
        self._table = empty_items()
        self._others = dict.fromkeys(_FACTS.values(), 0)

    def add(self, frame: pl.DataFrame) -> None:
        """Add the rows of a frame of canonical events."""
        names = [name for name in _FACTS.values() if name in frame.columns]
        if not names:
            return
        first = [pl.col(name).drop_nulls().first() for name in names]
        found = frame.group_by("item", maintain_order=True).agg(first)
        both = pl.concat([self._table, found], how="diagonal")
        self._table = both.group_by("item", maintain_order=True).agg(
            pl.col(name).drop_nulls().first() for name in _FACTS.values()
        )
        known = frame.select("item", *names).join(self._table, on="item", how="left")
        for name in names:
            self._others[name] += int((known[name] != known[f"{name}_right"]).sum())

    def table(self) -> pl.DataFrame:
        """Return item, title and category of the items of all frames."""
        return self._table

    def notes(self) -> dict[str, object]:
        """Return how many rows state something else than the table, for `dataset.json`."""
        texts = {"title": "titles", "category": "categories"}
        return {
            f"other_{texts[name]}": f"{rows:,} rows have another one than the first row of their item"
            for name, rows in self._others.items()
            if rows
        }


SOURCE = Source(
    name="interactions",
    description="Your own log: CSV, TSV, Parquet or JSON-lines",
    licence="Yours.",
    load=load,
    by_hand="name the columns",
    example="--input=log.csv --user_column=uid --item_column=sku --time_column=ts",
)
