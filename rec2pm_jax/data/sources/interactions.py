"""Any log as CSV, TSV, Parquet or JSON-lines; flags name its columns.

--input is a file, a directory of such files or a pattern ("logs/*.parquet"), read in the order of
names. --user_column, --item_column, --time_column (see `times.py` for units and zones) and,
optionally, --type_column and --order_column, a number that orders events of equal time; a log without
times has only the latter (--time_column= --order_column=position). Ties are shuffled unless
--ties=keep says that the order of the file means something.

Ids are compared as text: the number 7 and the text "7" are one id. Rows that equal another in every
column are events like others; `dataset.json` counts them as duplicate_rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from rec2pm_jax.data.schema import Interactions, no_items
from rec2pm_jax.data.sources import tables
from rec2pm_jax.data.sources.times import Times
from rec2pm_jax.errors import UserError


def load(options) -> Interactions:
    """Opens the files; UserError for a missing file, an unknown column or, later, a bad value."""
    paths = tables.input_files(options.input, "interactions")
    if not options.time_column and not options.order_column:
        raise UserError("Give --time_column or, for a log without times, --order_column.")
    Times(paths[0], options.time_unit, options.time_zone)  # refuses before anything is read
    notes: dict[str, object] = {}
    return Interactions(
        _frames(paths, options, notes),
        no_items(),
        has_times=bool(options.time_column),
        notes=notes,
    )


def _frames(paths: list[Path], options, notes: dict) -> Iterator[pl.DataFrame]:
    flags = {
        flag: getattr(options, flag)
        for flag in ("user_column", "item_column", "time_column", "type_column", "order_column")
        if getattr(options, flag)
    }
    told: dict[str, str] = {}
    id_types: set[str] = set()
    for path in paths:
        times = Times(path, options.time_unit, options.time_zone)
        for first_row, frame in tables.batches(path, flags):
            canonical = _canonical(frame, path, first_row, flags, times)
            for name, text in times.notes().items():
                if told.setdefault(name, text) != text:
                    raise UserError(
                        f"{path}: {name} is {text}, but the files before have {told[name]}; prepare "
                        "files of one kind, or convert them."
                    )
            yield canonical
            id_types.add(str(frame[flags["user_column"]].dtype))
    notes.update(told)
    if len(id_types) > 1:
        notes["user_id_types"] = f"{', '.join(sorted(id_types))}, compared as text"


def _canonical(frame, path: Path, first_row: int, flags: dict[str, str], times: Times):
    def ids(flag: str) -> pl.Series:
        return tables.ids(frame[flags[flag]], path, first_row)

    columns = {"user": ids("user_column"), "item": ids("item_column")}
    if "time_column" in flags:
        columns |= times.columns(frame[flags["time_column"]], first_row)
    if "order_column" in flags:
        order = tables.whole_numbers(frame[flags["order_column"]], path, first_row)
        # Without times the order stands in for them; beside times it decides among equal ones.
        columns["order" if "time_column" in flags else "timestamp"] = order
    if "type_column" in flags:
        columns["event_type"] = ids("type_column")
    return pl.DataFrame(columns)
