"""Any log as CSV, TSV, Parquet or JSON-lines; flags name its columns.

--user_column, --item_column, --time_column (seconds since 1970, or datetimes) and, optionally,
--type_column. Ties are shuffled unless --ties=keep says that the order of the file means something.
"""

from __future__ import annotations

import polars as pl

from rec2pm_jax.data.schema import Interactions, no_items
from rec2pm_jax.data.sources import tables


def load(options) -> Interactions:
    """Reads the file; UserError for a missing file, an unknown column or a bad value."""
    path = tables.input_file(options.input, "interactions")
    frame = tables.read_table(path)
    # Rows are numbered as an editor shows them: a CSV file's first line is its header.
    first_row = 2 if path.suffix.lower() in (".csv", ".tsv") else 1

    def column(flag: str) -> pl.Series:
        return tables.column(frame, getattr(options, flag), path, f"--{flag}")

    events = {
        "user": tables.ids(column("user_column"), path, first_row),
        "item": tables.ids(column("item_column"), path, first_row),
        "timestamp": tables.seconds(column("time_column"), path, first_row),
    }
    if options.type_column:
        events["event_type"] = tables.ids(column("type_column"), path, first_row)
    return Interactions(pl.DataFrame(events), no_items())
