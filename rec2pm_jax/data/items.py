"""The item table of a dataset, column by column."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.id_map import IdList, IdMap, fits_in_memory, open_ids
from rec2pm_jax.data.record_files import read_table


class Items:
    """The item table; row 0 of every field is padding. V = number of items + 1.

    Fields are read when they are first used. The raw ids of a table of more than a million items stay
    on disk (`id_map.py`).

    Attributes:
      raw_ids: sequence of str, length V; "" at 0.
      titles: list of str, length V; the raw id where the source has no title.
      categories: list of str or None, length V.
      counts: int64 [V] events per item in the whole dataset; 0 at 0.
    """

    def __init__(self, table: pl.DataFrame):
        """Take a table that is in memory."""
        self._height, self._path, self._table = table.height, Path(), table

    @classmethod
    def open(cls, path: Path, rows: int) -> Items:
        """Open the table of a dataset directory, and read it if it is small.

        Args:
          path: the directory.
          rows: the number of items.

        Raises:
          UserError: the table is missing or damaged, or has another number of rows.
        """
        columns: list[str] | None = None if fits_in_memory(rows) else []
        items = cls(read_table(path, "items", rows, columns))
        items._height, items._path = rows, path
        return items

    def __len__(self) -> int:
        """Return V."""
        return self._height + 1

    def table(self, columns: list[str] | None = None) -> pl.DataFrame:
        """Return columns of the table, without padding; None: all."""
        if self._table.width:
            return self._table if columns is None else self._table.select(columns)
        return read_table(self._path, "items", self._height, columns)

    @cached_property
    def raw_ids(self) -> IdList | IdMap:
        def read() -> pl.Series:
            return pl.concat([pl.Series([""]), self.table(["raw_id"])["raw_id"]])

        if self._table.width:
            return IdList(read().to_list())
        return open_ids(self._path, "items", len(self), read)

    @cached_property
    def titles(self) -> list[str]:
        table = self.table(["title", "raw_id"])
        return ["", *table["title"].fill_null(table["raw_id"]).to_list()]

    @cached_property
    def categories(self) -> list[str | None]:
        return [None, *self.table(["category"])["category"].to_list()]

    @cached_property
    def counts(self) -> np.ndarray:
        counts = self.table(["count"])["count"].to_numpy()
        return np.concatenate([[0], counts]).astype(np.int64)

    def id_of(self, raw: str) -> int | None:
        """Return the contiguous id of a raw id, or None for an unknown item."""
        return self.raw_ids.find(raw) or None
