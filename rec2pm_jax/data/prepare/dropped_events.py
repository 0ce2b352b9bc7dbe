"""Events that the filters drop, kept beside a dataset (`--keep_dropped`).

A later log may bring their users and items over a threshold. An item with three events on each of two
days passes `min_item_count=5` only when both days are counted together. So kept events are read again
before every appended log, and those that are dropped again are kept again.

    dropped/titles.parquet    item, title, category of the items of all logs
    dropped/NNNNN.parquet     canonical events with raw ids (see `schema.py`), in the order of the input
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from rec2pm_jax.data.polars_io import READ_ERRORS, plain_path, write_parquet
from rec2pm_jax.data.prepare.column_files import Arrays
from rec2pm_jax.data.prepare.encode import EncodedLog
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.errors import UserError

DIRECTORY = "dropped"
_KEYS = ("fraction", "order")  # finer than seconds


class DroppedEventWriter:
    """Writes dropped events to `directory`/dropped."""

    def __init__(self, directory: Path, log: EncodedLog):
        """Make the directory, and write the titles of the items of `log`."""
        self._directory, self._log = directory / DIRECTORY, log
        self._directory.mkdir()
        write_parquet(log.item_table, self._directory / "titles.parquet")

    def write(self, number: int, events: Arrays) -> None:
        """Write the dropped events of the `number`-th chunk of the encoded log."""
        frame = {
            "user": self._log.users.gather(events["user"]),
            "item": self._log.items.gather(events["item"]),
            "timestamp": pl.Series(events["time"]),
        }
        if "type" in events:
            names = pl.Series(self._log.facts.event_types, dtype=pl.String)
            frame["event_type"] = names.gather(events["type"])
        frame |= {name: pl.Series(events[name]).cast(pl.Int64) for name in _KEYS if name in events}
        write_parquet(pl.DataFrame(frame), self._directory / f"{number:05d}.parquet")


@dataclasses.dataclass(frozen=True)
class DroppedEvents:
    """Dropped events of the logs that a dataset holds.

    Attributes:
      directory: where they are.
      rows: how many they are.
    """

    directory: Path
    rows: int

    def prepend_to(self, log: Interactions) -> Interactions:
        """Return `log` with the dropped events before its own.

        Raises:
          UserError: the files are damaged, or only one of the two has event types.
        """
        titles = _read(self.directory / "titles.parquet")
        try:
            found = sum(
                pl.scan_parquet(plain_path(file)).select(pl.len()).collect().item()
                for file in self._files()
            )
        except READ_ERRORS as error:
            raise _damage_error(self.directory) from error
        if found != self.rows:
            raise _damage_error(self.directory)

        def items() -> pl.DataFrame:
            found = log.item_table()
            if "listed" not in found.columns:
                found = found.with_columns(listed=pl.lit(False))
            old = titles.with_columns(listed=pl.lit(False))
            both = pl.concat([found.filter("listed"), old, found], how="diagonal")
            return both.unique("item", keep="first", maintain_order=True)

        return dataclasses.replace(log, events=self._frames(log), items=items)

    def _frames(self, log: Interactions) -> Iterator[pl.DataFrame]:
        new = log.frames()
        first = next(new, None)
        if first is None:
            return
        old = [_read(file) for file in self._files()[:1]]
        if old and ("event_type" in old[0].columns) != ("event_type" in first.columns):
            raise UserError(
                f"{self.directory.parent} and the new log differ in having event types; append a log "
                "with the same columns."
            )
        keys = [k for k in _KEYS if any(k in frame.columns for frame in (first, *old))]
        columns = [*(n for n in first.columns if n not in _KEYS), *keys]

        def canonical(frame: pl.DataFrame) -> pl.DataFrame:
            absent = [pl.lit(0, pl.Int64).alias(k) for k in keys if k not in frame.columns]
            return frame.with_columns(absent).select(columns)

        for file in self._files():
            yield canonical(_read(file))
        yield canonical(first)
        yield from map(canonical, new)

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.parquet"))


def _read(file: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(plain_path(file))
    except READ_ERRORS as error:
        raise _damage_error(file) from error


def _damage_error(file: Path) -> UserError:
    return UserError(f"{file} is missing or damaged; prepare the dataset again from all logs.")
