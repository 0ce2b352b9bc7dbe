"""A table that describes items: titles, categories, attributes and vectors, with or without events.

    id          text or a whole number, one row per item
    title       optional text
    category    optional text
    vector      optional, as many numbers for each item: a list, or text such as "0.1 -2 0.35"

Every other column is an attribute, a text or a number per item. Empty cells are unknown. The table is
a CSV, TSV, Parquet or JSON-lines file. `encode_content` turns what is known of items into numbers for
a model (`nn/item_features.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.data.reading.column_checks import check_whole, get_column, raise_issues, to_ids
from rec2pm_jax.data.reading.log_files import read_whole
from rec2pm_jax.data.reading.report import BatchCheck
from rec2pm_jax.data.schema import CONTENT_COLUMNS, ITEM_COLUMNS, Interactions
from rec2pm_jax.errors import UserError

TITLE_WORDS = 8  # of a title, that are content
_NAMES = ("id", "title", "category", "vector")


def read_item_table(path: str | Path, id_type: str = "text") -> pl.DataFrame:
    """Read and check a table of items.

    Args:
      path: the file.
      id_type: how the ids of the log are read, "text" or "int".

    Returns:
      Columns item, title and category (text or null), attributes (a list of "NAME=VALUE", null
      without any) and vector (a list of float32, null for an item without).

    Raises:
      UserError: the file cannot be read, has no column id, has an id twice or a row without one, or a
        vector has another length than the others or a value that is not finite.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     file = Path(directory) / "items.csv"
    ...     _ = file.write_text("id,title,brand,vector\\n7,Green tea,Leaf,0.5 1\\n8,Jam,,\\n")
    ...     table = read_item_table(file)
    >>> table.rows()[0]
    ('7', 'Green tea', None, ['brand=Leaf'], [0.5, 1.0])
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--items={path} does not exist.")
    frame = read_whole(path)
    check = check_whole(frame, path, 1 if path.suffix.lower() == ".parquet" else 2)
    item = to_ids(get_column(frame, "id", path), check, id_type)
    check.refuse(~item.is_first_distinct(), frame["id"], "an id that an earlier row has")
    texts = {name: _to_text(frame, name, check) for name in ("title", "category")}
    attributes = [_to_text(frame, n, check) for n in frame.columns if n not in _NAMES]
    vectors = _to_vectors(frame, check)
    raise_issues(check)
    columns = {"item": item, **texts, "attributes": _to_pairs(attributes, len(item))}
    return pl.DataFrame(columns | {"vector": vectors}, schema=ITEM_COLUMNS | CONTENT_COLUMNS)


def add_item_table(log: Interactions, table: pl.DataFrame) -> Interactions:
    """Return a log whose items are described by `table`, of `read_item_table`, as well."""
    return dataclasses.replace(log, items=lambda: describe_items(log.item_table(), table))


def describe_items(items: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """Return a source's items with those of an item table, whose cells come first.

    Args:
      items: item, title and category of a source.
      table: of `read_item_table`.

    Returns:
      The columns of `table`, one row per item of either, and `listed`: whether `table` has it.
    """
    more = items.select(ITEM_COLUMNS.keys())
    known = more.rename({"title": "old_title", "category": "old_category"})
    both = table.join(known, on="item", how="left", maintain_order="left").with_columns(
        title=pl.coalesce("title", "old_title"),
        category=pl.coalesce("category", "old_category"),
        listed=pl.lit(True),
    )
    others = more.join(table, on="item", how="anti", maintain_order="left")
    others = others.with_columns(listed=pl.lit(False))
    return pl.concat([both.drop("old_title", "old_category"), others], how="diagonal")


def encode_content(items: pl.DataFrame, values: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what items are as numbers.

    The words of a title, its category and each attribute are hashed, so that a value never seen before
    has a number, too.

    Args:
      items: an item table with the columns title and category and, if there are any, attributes and
        vector.
      values: numbers of hashed values.

    Returns:
      Codes int32 [V, J] from 1 to `values`, 0 for none, and vectors float32 [V, d] of length 1 or 0.
      Row 0 is padding, row i + 1 is row i of `items`.

    Raises:
      UserError: vectors differ in length, as tables of several logs may.
    """
    words = pl.col("title").str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]+")
    parts = [
        pl.concat_list(pl.format("category={}", "category")).list.drop_nulls(),
        words.list.unique(maintain_order=True)
        .list.head(TITLE_WORDS)
        .list.eval(pl.format("title={}", pl.element())),
    ]
    if "attributes" in items.columns:
        parts.append(pl.col("attributes"))
    row = pl.int_range(pl.len()).alias("row")
    long = pl.concat([items.select(row, part.alias("value")).explode("value") for part in parts])
    long = long.drop_nulls("value").sort("row", maintain_order=True)
    texts, place = np.unique(long["value"].to_numpy(), return_inverse=True)
    codes = (1 + hash_strings(texts.tolist()) % np.uint64(values)).astype(np.int32)
    rows = long["row"].to_numpy().astype(np.int64)
    column = np.arange(len(rows)) - np.searchsorted(rows, rows)
    table = np.zeros((items.height + 1, int(column.max(initial=-1)) + 1), np.int32)
    table[rows + 1, column] = codes[place]
    return table, _stack_vectors(items)


def _stack_vectors(items: pl.DataFrame) -> np.ndarray:
    """Return the vectors of items, scaled to length 1: float32 [V, d]."""
    if "vector" not in items.columns:
        return np.zeros((items.height + 1, 0), np.float32)
    lengths = items["vector"].list.len()
    found = lengths.drop_nulls().unique().sort().to_list()
    if len(found) > 1:
        raise UserError(
            f"the items' vectors have {', '.join(map(str, found))} numbers; prepare the dataset with "
            "--items in which all have as many."
        )
    table = np.zeros((items.height + 1, found[0] if found else 0), np.float32)
    if found:
        rows = 1 + np.flatnonzero(lengths.is_not_null().to_numpy())
        flat = items["vector"].drop_nulls().explode().to_numpy()
        table[rows] = flat.reshape(len(rows), -1)
    norm = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(norm > 0, norm, 1)


def _to_text(frame: pl.DataFrame, name: str, check: BatchCheck) -> pl.Series:
    """Return a column as text, null where it is empty; nulls where there is no such column."""
    if name not in frame.columns:
        return pl.Series(name, [None] * frame.height, dtype=pl.String)
    values = frame[name]
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        raise UserError(
            f'{check.path}, column "{name}": attributes are texts or numbers, not {values.dtype}; '
            "leave the column out."
        )
    texts = values.cast(pl.String).str.strip_chars()
    return texts.replace("", None)


def _to_pairs(attributes: list[pl.Series], rows: int) -> pl.Series:
    """Return the attributes of each item as "NAME=VALUE": lists, null without any."""
    if not attributes:
        return pl.Series([None] * rows, dtype=CONTENT_COLUMNS["attributes"])
    frame = pl.DataFrame(attributes)
    pairs = [pl.concat_str(pl.lit(f"{a.name}="), pl.col(a.name)) for a in attributes]
    lists = frame.select(pairs=pl.concat_list(pairs).list.drop_nulls())["pairs"]
    return lists.set(lists.list.len() == 0, None)


def _to_vectors(frame: pl.DataFrame, check: BatchCheck) -> pl.Series:
    """Return the vectors of items: lists of float32, null for an item without."""
    kind = CONTENT_COLUMNS["vector"]
    if "vector" not in frame.columns:
        return pl.Series([None] * frame.height, dtype=kind)
    given = frame["vector"]
    lists = given
    if given.dtype == pl.String:
        lists = given.str.strip_chars("[] ").replace("", None).str.extract_all(r"[^\s,;]+")
    inner = getattr(lists.dtype, "inner", None)
    if inner is None or not (inner.is_numeric() or inner == pl.String):
        raise UserError(
            f'{check.path}, column "vector": vectors are lists of numbers, or text such as '
            f'"0.1 -2 0.35", not {given.dtype}.'
        )
    numbers = lists.cast(pl.List(inner)).list.eval(pl.element().cast(pl.Float32, strict=False))
    shown = lists.cast(pl.List(pl.String)).list.head(8).list.join(" ").alias("vector")
    wrong = numbers.list.eval(pl.element().is_finite().fill_null(False).not_()).list.any()
    check.refuse(wrong, shown, "a vector with a value that is no finite number")
    lengths = numbers.list.len()
    usual = lengths.drop_nulls().head(1)
    if len(usual):
        what = f"a vector of another length than the first ({usual[0]} numbers)"
        check.refuse(lengths != usual[0], shown, what)
    return numbers
