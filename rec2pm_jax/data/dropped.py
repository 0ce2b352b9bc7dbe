"""Events that the filters drop, kept beside a dataset (`--keep_dropped`).

A later log may make their users and items known: an item with three events on each of two days passes
`min_item_count=5` only when both days are counted together. Kept events are read again before every
appended log, and those that are still dropped are kept again.

    dropped/titles.parquet    item, title, category of the items of all logs
    dropped/NNNNN.parquet     canonical events, raw ids (see `schema.py`), in the order of the input
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.coding import CodedLog
from rec2pm_jax.data.columns import UNREADABLE, Arrays, write_parquet
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.errors import UserError

DIRECTORY = "dropped"


def begin(directory: Path, log: CodedLog) -> None:
    """Makes `directory`/dropped, with the titles of the items of `log`."""
    (directory / DIRECTORY).mkdir()
    write_parquet(log.item_table, directory / DIRECTORY / "titles.parquet")


def write(directory: Path, number: int, log: CodedLog, chunk: Arrays, rows: np.ndarray) -> None:
    """Keeps the `rows` (bool [n]) of the `number`-th chunk of coded events."""
    chunk = {name: values[rows] for name, values in chunk.items()}
    frame = {
        "user": log.users.gather(chunk["user"]),
        "item": log.items.gather(chunk["item"]),
        "timestamp": chunk["time"],
    }
    if "type" in chunk:
        frame["event_type"] = pl.Series(log.event_types, dtype=pl.String).gather(chunk["type"])
    if "order" in chunk:
        frame["order"] = chunk["order"]
    write_parquet(pl.DataFrame(frame), directory / DIRECTORY / f"{number:05d}.parquet")


def before(kept: Path, rows: int, log: Interactions) -> Interactions:
    """`log` with the `rows` events in the directory `kept` before its own.

    Raises:
      UserError: they are damaged, or only one of the two has event types.
    """
    titles = _read(kept / "titles.parquet")
    try:
        found = sum(
            pl.scan_parquet(file).select(pl.len()).collect().item() for file in _files(kept)
        )
    except UNREADABLE as error:
        raise _damaged(kept) from error
    if found != rows:
        raise _damaged(kept)
    items = pl.concat([titles, log.items]).unique("item", keep="first", maintain_order=True)
    return dataclasses.replace(log, events=_frames(kept, log), items=items)


def _frames(kept: Path, log: Interactions) -> Iterator[pl.DataFrame]:
    new = log.frames()
    first = next(new, None)
    if first is None:
        return
    old = [_read(file) for file in _files(kept)[:1]]
    if old and ("event_type" in old[0].columns) != ("event_type" in first.columns):
        raise UserError(
            f"{kept.parent} and the new log differ in having event types; append a log with the same "
            "columns."
        )
    ordered = any("order" in frame.columns for frame in (first, *old))
    columns = [*(n for n in first.columns if n != "order"), *(["order"] if ordered else [])]

    def canonical(frame: pl.DataFrame) -> pl.DataFrame:
        if ordered and "order" not in frame.columns:
            frame = frame.with_columns(order=pl.lit(0, pl.Int64))
        return frame.select(columns)

    for file in _files(kept):
        yield canonical(_read(file))
    yield canonical(first)
    yield from map(canonical, new)


def _files(kept: Path) -> list[Path]:
    return sorted(kept.glob("[0-9]*.parquet"))


def _read(file: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(file)
    except UNREADABLE as error:
        raise _damaged(file) from error


def _damaged(file: Path) -> UserError:
    return UserError(f"{file} is missing or damaged; prepare the dataset again from all logs.")
