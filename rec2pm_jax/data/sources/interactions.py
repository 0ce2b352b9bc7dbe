"""Your own log as CSV, TSV, Parquet or JSON-lines; flags name its columns.

--input is a file, a directory of such files or a pattern ("logs/*.parquet"). Files are read in the
order of their names. The columns are

    --user_column, --item_column
    --time_column     see `data/reading/times.py` for units and zones
    --type_column     optional, the event type
    --order_column    optional, a number that orders a user's events of equal time

A log without times has an order only: --time_column= --order_column=position. Ties are shuffled, unless
--ties=keep states that the order of the file is meaningful.

Ids are compared as text: the number 7 and the text "7" are one id. A row that equals another one in
every column is an event, too; `dataset.json` counts such rows as duplicate_rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading.column_checks import to_ids, to_whole_numbers
from rec2pm_jax.data.reading.log_files import find_input_files, read_batches
from rec2pm_jax.data.reading.times import TimeReader
from rec2pm_jax.data.schema import Interactions, empty_items
from rec2pm_jax.data.sources.source import Source
from rec2pm_jax.errors import UserError


def load(options: PrepareOptions) -> Interactions:
    """Open the files.

    Raises:
      UserError: a file is missing, a column is unknown, or, while reading, a value is wrong.
    """
    paths = find_input_files(options.input, "interactions")
    if not options.time_column and not options.order_column:
        raise UserError("Give --time_column or, for a log without times, --order_column.")
    # Made here only to refuse a wrong unit or zone before anything is read.
    TimeReader(paths[0], options.time_unit, options.time_zone)
    notes: dict[str, object] = {}
    return Interactions(
        _read_frames(paths, options, notes),
        empty_items(),
        has_times=bool(options.time_column),
        notes=notes,
    )


def _read_frames(
    paths: list[Path], options: PrepareOptions, notes: dict[str, object]
) -> Iterator[pl.DataFrame]:
    flags = {
        flag: getattr(options, flag)
        for flag in ("user_column", "item_column", "time_column", "type_column", "order_column")
        if getattr(options, flag)
    }
    found: dict[str, str] = {}
    id_types: set[str] = set()
    for path in paths:
        times = TimeReader(path, options.time_unit, options.time_zone)
        for first_row, frame in read_batches(path, flags):
            canonical = _to_canonical(frame, path, first_row, flags, times)
            for name, text in times.notes().items():
                if found.setdefault(name, text) != text:
                    raise UserError(
                        f"{path}: {name} is {text}, but earlier files have {found[name]}; prepare "
                        "files of one kind, or convert them."
                    )
            yield canonical
            id_types.add(str(frame[flags["user_column"]].dtype))
    notes.update(found)
    if len(id_types) > 1:
        notes["user_id_types"] = f"{', '.join(sorted(id_types))}, compared as text"


def _to_canonical(
    frame: pl.DataFrame, path: Path, first_row: int, flags: dict[str, str], times: TimeReader
) -> pl.DataFrame:
    def ids(flag: str) -> pl.Series:
        return to_ids(frame[flags[flag]], path, first_row)

    columns = {"user": ids("user_column"), "item": ids("item_column")}
    if "time_column" in flags:
        columns |= times.columns(frame[flags["time_column"]], first_row)
    if "order_column" in flags:
        order = to_whole_numbers(frame[flags["order_column"]], path, first_row)
        # Without times the order replaces them; with times it decides among equal ones.
        columns["order" if "time_column" in flags else "timestamp"] = order
    if "type_column" in flags:
        columns["event_type"] = ids("type_column")
    return pl.DataFrame(columns)


SOURCE = Source(
    name="interactions",
    description="Your own log: CSV, TSV, Parquet or JSON-lines",
    licence="Yours.",
    load=load,
    by_hand="name the columns",
    example="--input=log.csv --user_column=uid --item_column=sku --time_column=ts",
)
