"""Tables of numbers on disk: one raw file per column, appended to and read in chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


class ColumnFiles:
    """Columns of equal length in a directory.

    Attributes:
      dtypes: name -> numpy dtype, little-endian.
    """

    def __init__(self, directory: Path, dtypes: Mapping[str, str] | None = None):
        """Open the columns in a directory, or create them.

        Args:
          directory: where the files are.
          dtypes: name -> numpy dtype of columns to create; None opens existing ones.
        """
        self._directory = directory
        description = directory / "columns.json"
        if dtypes is not None:
            directory.mkdir(exist_ok=True)
            description.write_text(json.dumps(dict(dtypes)))
            for name in dtypes:
                self._file(name).touch()
        self.dtypes = {
            name: np.dtype(text) for name, text in json.loads(description.read_text()).items()
        }

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.bin"

    def __len__(self) -> int:
        name, dtype = next(iter(self.dtypes.items()))
        return self._file(name).stat().st_size // dtype.itemsize

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add rows.

        Args:
          arrays: every column, [n] each.

        Raises:
          OSError: the disk is full.
        """
        for name, dtype in self.dtypes.items():
            # Not ndarray.tofile, whose error on a full disk does not say that it is full.
            with open(self._file(name), "ab") as file:
                file.write(np.ascontiguousarray(arrays[name], dtype).data)

    def chunks(self, rows: int, names: Iterable[str] = ()) -> Iterator[Arrays]:
        """Yield all rows in order.

        Args:
          rows: at most so many at a time.
          names: columns to read; empty: all.
        """
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
        """Return all rows of the columns `names` (empty: of all columns)."""
        names = list(names) or list(self.dtypes)
        return {name: np.fromfile(self._file(name), self.dtypes[name]) for name in names}

    def remove(self) -> None:
        """Delete the columns; the directory and its other files stay."""
        for name in self.dtypes:
            self._file(name).unlink(missing_ok=True)


def append_by_part(files: Sequence[ColumnFiles], part: np.ndarray, columns: Arrays) -> None:
    """Append every row to the table of its part.

    Args:
      files: one table per part.
      part: int [n], the part of each row.
      columns: every column of the tables, [n] each.

    Raises:
      OSError: the disk is full.
    """
    if len(files) == 1:
        files[0].append(columns)
        return
    # Stable, because the order of the input may count.
    order = np.argsort(part.astype(np.uint16 if len(files) < 65536 else np.int64), kind="stable")
    columns = {name: columns[name][order] for name in files[0].dtypes}
    ends = np.cumsum(np.bincount(part, minlength=len(files)))
    for file, start, end in zip(files, [0, *ends[:-1]], ends, strict=True):
        if end > start:
            file.append({name: values[start:end] for name, values in columns.items()})
