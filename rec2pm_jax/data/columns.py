"""Tables of numbers on disk: one raw file per column, appended to and read in chunks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

# What polars raises about a file that is damaged, a panic of its Rust code among them.
UNREADABLE = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)

Arrays = dict[str, np.ndarray]


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Writes a table that fits in memory; OSError when the disk is full, where polars has its own."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    path.write_bytes(buffer.getbuffer())


def deal_out(files: Sequence[ColumnFiles], part: np.ndarray, columns: Mapping) -> None:
    """Appends every row of `columns`, arrays [n], to the one of `files` that `part`, int [n], names."""
    if len(files) == 1:
        files[0].append(columns)
        return
    # Stable, as the order of the input may count.
    order = np.argsort(part.astype(np.uint16 if len(files) < 65536 else np.int64), kind="stable")
    columns = {name: columns[name][order] for name in files[0].dtypes}
    ends = np.cumsum(np.bincount(part, minlength=len(files)))
    for file, start, end in zip(files, [0, *ends[:-1]], ends, strict=True):
        if end > start:
            file.append({name: values[start:end] for name, values in columns.items()})


class ColumnFiles:
    """Columns of equal length in a directory; `dtypes` is remembered there when they are made.

    Attributes:
      dtypes: name -> numpy dtype, little-endian.
    """

    def __init__(self, directory: Path, dtypes: Mapping[str, str] | None = None):
        self._directory = directory
        described = directory / "columns.json"
        if dtypes is not None:
            directory.mkdir(exist_ok=True)
            described.write_text(json.dumps(dict(dtypes)))
            for name in dtypes:
                self._file(name).touch()
        self.dtypes = {
            name: np.dtype(text) for name, text in json.loads(described.read_text()).items()
        }

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.bin"

    def __len__(self) -> int:
        name, dtype = next(iter(self.dtypes.items()))
        return self._file(name).stat().st_size // dtype.itemsize

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds rows; `arrays` has every column. OSError when the disk is full."""
        for name, dtype in self.dtypes.items():
            # Not ndarray.tofile, whose error on a full disk does not say that it is full.
            with open(self._file(name), "ab") as file:
                file.write(np.ascontiguousarray(arrays[name], dtype))

    def chunks(self, rows: int, names: Iterable[str] = ()) -> Iterator[Arrays]:
        """All rows in order, at most `rows` at a time, of all columns unless `names` says which."""
        names = list(names) or list(self.dtypes)
        for start in range(0, len(self), rows):
            yield {
                name: np.fromfile(
                    self._file(name),
                    self.dtypes[name],
                    count=rows,
                    offset=start * self.dtypes[name].itemsize,
                )
                for name in names
            }

    def read(self, names: Iterable[str] = ()) -> Arrays:
        """All rows in memory."""
        names = list(names) or list(self.dtypes)
        return {name: np.fromfile(self._file(name), self.dtypes[name]) for name in names}

    def remove(self) -> None:
        """Frees the disk; the directory and whatever else it holds stay."""
        for name in self.dtypes:
            self._file(name).unlink(missing_ok=True)
