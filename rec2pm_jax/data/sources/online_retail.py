"""Online Retail II: what customers of a British gift shop bought, December 2009 to December 2011.

Schema: Chen, D. (2012), "Online Retail II", UCI Machine Learning Repository,
https://doi.org/10.24432/C5CG6D. The publisher's online_retail_II.xlsx has a sheet for each year. The
sheets overlap by nine days of December 2010. CSV copies hold the same columns, some under the names of
the first edition (Online Retail):

    Invoice or InvoiceNo, StockCode, Description, InvoiceDate, Customer ID or CustomerID

The other columns (quantity, price, country) are not read. These lines are dropped and counted, a line
for the first reason that it meets:

    cancelled            the invoice begins with C
    without_customer     no customer id
    repeated_in_invoice  an earlier line has the same invoice and stock code, whatever the sheet

`Customer ID` 13085.0 and 13085 are one customer. Times are to the minute and taken as UTC. All lines
of an invoice share a time, so ties are shuffled. Stock codes that are no products (POST, M) stay.

A table with the columns user_id, item_id and timestamp (seconds) holds prepared events instead. It is
read as it is.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading.column_checks import check_whole, raise_issues, to_ids, to_seconds
from rec2pm_jax.data.reading.log_files import read_whole, unreadable_error
from rec2pm_jax.data.reading.report import BatchCheck, LogReport
from rec2pm_jax.data.reading.text_lines import is_utf8
from rec2pm_jax.data.reading.times import TimeReader, TimeRules
from rec2pm_jax.data.reading.values import WHOLE_FLOAT
from rec2pm_jax.data.schema import Interactions, empty_items
from rec2pm_jax.data.sources.source import Source
from rec2pm_jax.errors import UserError

_NAMES = {
    "invoice": ("Invoice", "InvoiceNo"),
    "item": ("StockCode",),
    "title": ("Description",),
    "time": ("InvoiceDate",),
    "user": ("Customer ID", "CustomerID"),
}
_PREPARED = ("user_id", "item_id", "timestamp")
_SUFFIXES = (".xlsx", ".csv", ".parquet")
_US_TIME = "%m/%d/%Y %H:%M"  # of the first edition's CSV copies; the others have ISO times


def load(options: PrepareOptions) -> Interactions:
    """Read the table; UserError when it is missing, unreadable or has a bad row."""
    path = _find_table(Path(options.input))
    tables = _read_tables(path)
    if all(set(_PREPARED) <= set(table.columns) for table in tables.values()):
        return _load_prepared(tables)
    lines = pl.concat([_read_lines(table, part) for part, table in tables.items()])
    dropped = {}
    for reason, stays in (
        ("cancelled", ~pl.col("invoice").str.starts_with("C")),
        ("without_customer", pl.col("user") != ""),
        ("repeated_in_invoice", pl.struct("invoice", "item").is_first_distinct()),
    ):
        kept = lines.filter(stays)
        dropped[reason] = lines.height - kept.height
        lines = kept
    # The most frequent description, so that a note such as "damaged" on one line is no title.
    items = lines.group_by("item").agg(
        title=pl.col("title").drop_nulls().mode().min(),
        category=pl.lit(None, pl.String),
    )
    return Interactions(lines.select("user", "item", "timestamp"), items, dropped=dropped)


def _find_table(path: Path) -> Path:
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
        if not found:
            raise SOURCE.missing_error(f"{path} holds no {', '.join(_SUFFIXES)} file.")
        if len(found) > 1:
            raise UserError(
                f"{path} holds {', '.join(p.name for p in found)}; give one of them as --input."
            )
        return found[0]
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{path}: online_retail reads {', '.join(_SUFFIXES)} files.")
    return path


def _read_tables(path: Path) -> dict[Path, pl.DataFrame]:
    """Return the tables by the name that errors give them: one per sheet, or the whole file."""
    if path.suffix.lower() == ".xlsx":
        return {Path(f"{path}[{name}]"): sheet for name, sheet in _read_sheets(path).items()}
    if path.suffix.lower() == ".csv" and not is_utf8(path):
        return {path: pl.read_csv(path, infer_schema=False, encoding="iso-8859-1")}
    return {path: read_whole(path)}


def _read_sheets(path: Path) -> dict[str, pl.DataFrame]:
    """Return the sheets of a workbook, every cell as text."""
    try:
        import fastexcel
    except ImportError as error:
        raise UserError(
            f"{path}: reading .xlsx needs the package fastexcel; run "
            "`pip install 'rec2pm_jax[excel]'`, or give a CSV copy as --input."
        ) from error
    try:
        return pl.read_excel(path, sheet_id=0, engine="calamine", infer_schema_length=0)
    except fastexcel.FastExcelError as error:
        raise unreadable_error(path, error) from error


def _read_lines(table: pl.DataFrame, part: Path) -> pl.DataFrame:
    """Return the lines of a table, with its columns as `_NAMES` calls them, and their times.

    A line without a customer has the user "". Its time must be readable, too.
    """
    columns = pl.DataFrame(
        {name: _find_column(table, names, part) for name, names in _NAMES.items()}
    )
    filled = ~columns.select(pl.all_horizontal(pl.all().is_null())).to_series()
    rows = pl.int_range(2, 2 + columns.height, eager=True)  # the first line is the header
    columns = columns.filter(filled)
    check = BatchCheck(LogReport(), part, rows.filter(filled))
    text = columns.select(pl.all().cast(pl.String).str.strip_chars())
    first_time = text["time"].drop_nulls().head(1)
    us_time = first_time.str.contains("/").any()
    times = TimeReader(part, TimeRules(format=_US_TIME if us_time else ""))
    user = text["user"].fill_null("").replace(["NaN", "nan"], "")
    lines = {
        "invoice": to_ids(text["invoice"].rename("Invoice"), check),
        "item": to_ids(text["item"].rename("StockCode"), check),
        "title": text["title"],
        "user": user.str.replace(WHOLE_FLOAT, "$1"),
        "timestamp": times.columns(columns["time"].rename("InvoiceDate"), check)["timestamp"],
    }
    raise_issues(check)
    return pl.DataFrame(lines)


def _find_column(table: pl.DataFrame, names: tuple[str, ...], part: Path) -> pl.Series:
    for name in names:
        if name in table.columns:
            return table[name]
    raise UserError(
        f'{part} has no column "{" or ".join(names)}"; its columns are {", ".join(table.columns)}.'
    )


def _load_prepared(tables: dict[Path, pl.DataFrame]) -> Interactions:
    frames = []
    for part, table in tables.items():
        check = check_whole(table, part, first_row=1 if part.suffix == ".parquet" else 2)
        user, item, timestamp = (table[name] for name in _PREPARED)
        events = {
            "user": to_ids(user, check, "int"),
            "item": to_ids(item, check),
            "timestamp": to_seconds(timestamp, check),
        }
        raise_issues(check)
        frames.append(pl.DataFrame(events))
    return Interactions(pl.concat(frames), empty_items())


SOURCE = Source(
    name="online_retail",
    description="A British gift shop, 2009 to 2011: 5,942 customers, 1.07 M lines of invoices",
    licence="CC BY 4.0. Cite: Chen, D. (2012), Online Retail II, UCI, doi.org/10.24432/C5CG6D.",
    load=load,
    page="https://archive.ics.uci.edu/dataset/502/online+retail+ii",
    files="FILE, online_retail_II.xlsx or a CSV copy, or DIR with it",
    example="--input=online_retail_II.xlsx --min_item_count=5",
)
