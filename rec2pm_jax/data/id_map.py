"""Raw ids of a large table in files that are mapped into memory, with an index to look them up.

    raw_ids/NAME-text.npy    uint8, the ids in UTF-8 end to end, in the order of the table
    raw_ids/NAME-ends.npy    int64 [n + 1], id i is the bytes [ends[i], ends[i + 1])
    raw_ids/NAME-hashes.npy  uint64 [n], `hash_strings` of all ids, ascending
    raw_ids/NAME-rows.npy    uint32 [n], the row of each of these hashes

A look-up is a binary search among the hashes, then a comparison of the text. Nothing is read before:
the operating system reads the pages that are touched. A table takes 20 bytes per row and its text.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import polars as pl
from numpy.lib.format import open_memmap

from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.errors import UserError

DIRECTORY = "raw_ids"
_COLUMNS = ("text", "ends", "hashes", "rows")
IN_MEMORY_IDS = 1_000_000  # a larger table has a map
_CHUNK = 1 << 20  # ids that are text in Python at a time

_log = logging.getLogger(__name__)


class IdList(list[str]):
    """Raw ids in memory, with the look-ups of `IdMap`."""

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {raw: row for row, raw in enumerate(self)}

    def find(self, raw: str) -> int | None:
        """Return the row of a raw id, or None for an unknown one."""
        return self._rows.get(raw)


class IdMap(Sequence[str]):
    """The raw ids of a table, in its order; `find` returns the row of one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     write_id_map(Path(directory), "users", pl.Series(["ann", "Zoë", "bob"]))
    ...     ids = IdMap(Path(directory), "users", 3)
    ...     found = ids[1], ids[1:], ids.find("bob"), ids.find("eve")
    >>> found
    ('Zoë', ['Zoë', 'bob'], 2, None)
    """

    def __init__(self, path: Path, name: str, rows: int):
        """Map the files of one table.

        Args:
          path: the directory that `raw_ids` lies in.
          name: users or items.
          rows: the number of ids that are expected.

        Raises:
          UserError: a file is missing or damaged, or has another number of rows.
        """
        directory = path / DIRECTORY
        try:
            files = [directory / f"{name}-{column}.npy" for column in _COLUMNS]
            self._text, self._ends, self._hashes, self._rows = (
                np.load(file, mmap_mode="r") for file in files
            )
            if not len(self._ends) - 1 == len(self._hashes) == len(self._rows) == rows:
                raise ValueError(f"not {rows} rows")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{directory} is damaged ({error}); delete it, and it is written again."
            ) from error

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._at(index % len(self))

    def _at(self, row: int) -> str:
        return self._text[self._ends[row] : self._ends[row + 1]].tobytes().decode()

    def find(self, raw: str) -> int | None:
        """Return the row of a raw id, or None for an unknown one."""
        key = hash_strings([raw])[0]
        place = int(np.searchsorted(self._hashes, key))
        while place < len(self) and self._hashes[place] == key:
            row = int(self._rows[place])
            if self._at(row) == raw:
                return row
            place += 1
        return None


def fits_in_memory(rows: int) -> bool:
    """Return whether so many raw ids are kept in memory rather than mapped."""
    return rows <= IN_MEMORY_IDS


def open_ids(path: Path, name: str, rows: int, read: Callable[[], pl.Series]) -> IdList | IdMap:
    """Return the raw ids of a table: in memory if they are few, else mapped.

    Args:
      path: the directory of the dataset.
      name: users or items.
      rows: the number of ids.
      read: reads them from the table, if the files of the map are not there yet.

    Raises:
      UserError: the files are damaged, or cannot be written.
    """
    if fits_in_memory(rows):
        return IdList(read().to_list())
    if not (path / DIRECTORY / f"{name}-rows.npy").is_file():
        _log.warning("%s: an index of the raw ids of %s %s is written, once.", path, rows, name)
        try:
            write_id_map(path, name, read())
        except OSError as error:
            raise UserError(
                f"{path / DIRECTORY} cannot be written ({error}), and the raw ids of {rows} {name} are "
                "looked up there; make the directory writable, or prepare the dataset again."
            ) from error
    return IdMap(path, name, rows)


def write_id_map(path: Path, name: str, ids: pl.Series) -> None:
    """Write the files of one table.

    Args:
      path: the directory that `raw_ids` is made in.
      name: users or items.
      ids: raw ids in the order of the table.

    Raises:
      OSError: the disk is full or read-only.
    """
    directory = path / DIRECTORY
    partial = path / f"{DIRECTORY}.{name}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        ends = _create(partial, f"{name}-ends", np.int64, len(ids) + 1)
        ends[0] = 0
        ends[1:] = np.cumsum(ids.str.len_bytes().to_numpy(), dtype=np.int64)
        text = _create(partial, f"{name}-text", np.uint8, int(ends[-1]))
        hashes = np.empty(len(ids), np.uint64)
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK].to_list()
            stop = start + len(chunk)
            text[ends[start] : ends[stop]] = np.frombuffer("".join(chunk).encode(), np.uint8)
            hashes[start:stop] = hash_strings(chunk)
        order = np.argsort(hashes, kind="stable")
        _create(partial, f"{name}-hashes", np.uint64, len(ids))[:] = hashes[order]
        _create(partial, f"{name}-rows", np.uint32, len(ids))[:] = order
        directory.mkdir(exist_ok=True)
        for file in partial.iterdir():  # another process may write the same files meanwhile
            file.replace(directory / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _create(directory: Path, name: str, dtype: type, rows: int) -> np.ndarray:
    """Return a new file as an array of `rows` numbers."""
    return open_memmap(directory / f"{name}.npy", "w+", dtype, (rows,))
