"""Reading the record files of a prepared dataset: all at once, or some users at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgpack
import numpy as np
import polars as pl
from array_record.python.array_record_module import ArrayRecordReader

from rec2pm_jax.data.columns import UNREADABLE
from rec2pm_jax.data.histories import Histories, content_hash
from rec2pm_jax.data.partitions import divide
from rec2pm_jax.data.writer import shard_name
from rec2pm_jax.errors import UserError

_BLOCK = 200_000  # events at a time, and the rest of the last user's


def read_verified(path: Path, info: dict) -> Histories:
    """The sequences of one directory, without its deltas; UserError where they do not match `info`."""
    users = read_table(path, "users", info["users"])
    names, lengths = users["user"].to_list(), users["length"].to_numpy()
    histories = read_histories(path, info, names, lengths)
    _check(path, info, names, lengths, lambda name: [getattr(histories, name)])
    return histories


def verify(path: Path, info: dict, rows: int) -> None:
    """Reads a directory once per column, `rows` events at a time.

    Raises:
      UserError: the files are damaged or do not match the content hash in `info`.
    """
    users = read_table(path, "users", info["users"])
    names, lengths = users["user"].to_list(), users["length"].to_numpy()

    def column(name: str) -> Iterator[np.ndarray]:
        ends = divide(lengths, rows)[0][1:]
        return (getattr(part, name) for part in read_parts(path, info, names, lengths, ends))

    _check(path, info, names, lengths, column)


def _check(path: Path, info: dict, names: list[str], lengths: np.ndarray, column) -> None:
    items = read_table(path, "items", info["items"])
    found = content_hash(names, lengths, column, items, info["event_types"], info["has_times"])
    if found != info["content_hash"]:
        raise mismatch(path)


def read_table(path: Path, name: str, rows: int) -> pl.DataFrame:
    """users.parquet or items.parquet; UserError where it is damaged or has other than `rows` rows."""
    try:
        table = pl.read_parquet(path / f"{name}.parquet")
    except UNREADABLE as error:
        raise UserError(
            f"{path / name}.parquet is missing or damaged; prepare the dataset again."
        ) from error
    if table.height != rows:
        raise UserError(
            f"{path / name}.parquet has {table.height} rows, dataset.json says {rows}; prepare the "
            "dataset again."
        )
    return table


def read_histories(path: Path, info: dict, users: list[str], lengths: np.ndarray) -> Histories:
    """All users of one directory; arguments and errors as `read_parts`."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ids, times = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int64)
    types = np.empty(offsets[-1], np.int8) if info["event_types"] else None
    first, ends = 0, divide(lengths, _BLOCK)[0][1:]
    for part in read_parts(path, info, users, lengths, ends):
        events = slice(first, first + len(part.ids))
        ids[events], times[events] = part.ids, part.times
        if types is not None:
            types[events] = part.types
        first = events.stop
    return Histories(users, offsets, ids, times, types)


def read_parts(
    path: Path, info: dict, users: list[str], lengths: np.ndarray, ends: np.ndarray
) -> Iterator[Histories]:
    """Consecutive users at a time: part p ends before user `ends[p]`; together they are all users.

    Args:
      users, lengths: what users.parquet states.

    Raises:
      UserError: a file is missing or damaged, or does not hold these users and lengths.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    records = _records(path, info, lengths)
    first = 0
    for end in ends:
        found = list(islice(records, int(end) - first))
        if len(found) < end - first:
            raise mismatch(path)
        yield _histories(found, users[first:end], offsets[first : end + 1], info, path)
        first = int(end)
    if next(records, None) is not None:
        raise mismatch(path)


def _records(path: Path, info: dict, lengths: np.ndarray) -> Iterator[dict]:
    """All records, a few at a time."""
    blocks = iter(divide(lengths, _BLOCK)[0][1:].tolist())
    user, stop = 0, next(blocks, 0)
    for shard in range(info["shards"]):
        file = path / shard_name(shard, info["shards"])
        if not file.is_file():
            raise UserError(f"{file} is missing; prepare the dataset again.")
        try:
            reader = ArrayRecordReader(str(file))
            first, last = user, user + reader.num_records()
            if last > len(lengths):
                raise mismatch(path)
            while user < last:
                end = min(stop, last)
                for record in reader.read(user - first, end - first):
                    yield msgpack.unpackb(record)
                user, stop = end, next(blocks, 0) if end == stop else stop
            reader.close()
        except UserError:
            raise
        except Exception as error:  # the reader raises plain RuntimeErrors, msgpack several kinds
            raise UserError(f"{file} is damaged; prepare the dataset again. ({error})") from error


def _histories(found, users: list[str], offsets: np.ndarray, info: dict, path: Path) -> Histories:
    offsets = offsets - offsets[0]
    ids, times = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int64)
    types = np.empty(offsets[-1], np.int8) if info["event_types"] else None
    for user, record, start, end in zip(users, found, offsets[:-1], offsets[1:], strict=True):
        if record["user"] != user:
            raise mismatch(path)
        try:
            ids[start:end] = np.frombuffer(record["ids"], "<i4")
            times[start:end] = np.frombuffer(record["times"], "<i8")
            if types is not None:
                types[start:end] = np.frombuffer(record["types"], np.int8)
        except (ValueError, TypeError):
            raise mismatch(path) from None
    return Histories(users, offsets, ids, times, types)


def mismatch(path: Path) -> UserError:
    return UserError(
        f"{path}: the files do not match the content hash in dataset.json; prepare the dataset "
        "again."
    )
