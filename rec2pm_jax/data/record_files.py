"""User sequences as ArrayRecord files.

A record is one user, a msgpack map {user: str, ids: int32 bytes, times: int64 bytes, types: int8
bytes or nil}, little-endian. `times` are the source's own timestamps. Shards follow the order of the
users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgpack
import numpy as np
import polars as pl
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from rec2pm_jax.data.histories import Histories, group_users, hash_content, lengths_to_offsets
from rec2pm_jax.data.polars_io import READ_ERRORS, plain_path
from rec2pm_jax.errors import UserError

_BLOCK = 200_000  # events read at a time, and the rest of the last user's


def shard_name(shard: int, shards: int) -> str:
    """Return the file name of a shard, counted from 0."""
    return f"sequences-{shard:05d}-of-{shards:05d}.arrayrecord"


def shard_bounds(users: int, shards: int) -> np.ndarray:
    """Return where shards begin: shard s has the users [bounds[s], bounds[s + 1]); int64 [S + 1]."""
    return np.linspace(0, users, shards + 1).astype(np.int64)


def encode_records(part: Histories) -> Iterator[bytes]:
    """Yield one record per user."""
    ids = np.ascontiguousarray(part.ids, "<i4").tobytes()
    times = np.ascontiguousarray(part.times, "<i8").tobytes()
    types = None if part.types is None else np.ascontiguousarray(part.types, "i1").tobytes()
    start = 0
    for user, end in zip(part.users, part.offsets[1:].tolist(), strict=True):
        yield msgpack.packb(
            {
                "user": user,
                "ids": ids[4 * start : 4 * end],
                "times": times[8 * start : 8 * end],
                "types": None if types is None else types[start:end],
            }
        )
        start = end


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write a record file.

    Raises:
      OSError: the disk is full or read-only.
    """
    # One record per group, because readers fetch single users at random.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    try:
        for record in records:
            writer.write(record)
        writer.close()
    except RuntimeError as error:  # the writer's form of file system errors
        raise OSError(str(error)) from error


def read_table(path: Path, name: str, rows: int, columns: list[str] | None = None) -> pl.DataFrame:
    """Read users.parquet or items.parquet of a dataset directory.

    Args:
      path: the directory.
      name: users or items.
      rows: the number of rows that dataset.json states.
      columns: the columns to read; None: all.

    Raises:
      UserError: the file is missing or damaged, or has another number of rows.
    """
    file = plain_path(path / f"{name}.parquet")
    try:
        table = pl.scan_parquet(file)
        found = table.select(pl.len()).collect().item()
        frame = (table if columns is None else table.select(columns)).collect()
    except READ_ERRORS as error:
        raise UserError(
            f"{path / name}.parquet is missing or damaged; prepare the dataset again."
        ) from error
    if found != rows:
        raise UserError(
            f"{path / name}.parquet has {found} rows, dataset.json says {rows}; prepare the "
            "dataset again."
        )
    return frame


def read_users(path: Path, info: dict) -> tuple[list[str], np.ndarray]:
    """Read the raw ids and the numbers of events, int [U], from users.parquet.

    Raises:
      UserError: as `read_table`.
    """
    users = read_table(path, "users", info["users"])
    return users["user"].to_list(), users["length"].to_numpy()


def read_verified(path: Path, info: dict) -> Histories:
    """Read the sequences of one directory, without its deltas, and check the content hash.

    Args:
      path: the directory.
      info: its description, as `dataset.json` has it.

    Raises:
      UserError: the files are missing, damaged or do not match `info`.
    """
    names, lengths = read_users(path, info)
    histories = read_histories(path, info, names, lengths)
    _check_hash(path, info, names, lengths, lambda name: [getattr(histories, name)])
    return histories


def verify_files(path: Path, info: dict, rows: int) -> None:
    """Check the content hash of one directory, reading it once per column.

    Args:
      path: the directory.
      info: its description, as `dataset.json` has it.
      rows: events to hold at a time.

    Raises:
      UserError: the files are missing, damaged or do not match `info`.
    """
    names, lengths = read_users(path, info)

    def column(name: str) -> Iterator[np.ndarray]:
        ends = group_users(lengths, rows).ends
        return (getattr(part, name) for part in read_parts(path, info, names, lengths, ends))

    _check_hash(path, info, names, lengths, column)


def _check_hash(
    path: Path,
    info: dict,
    names: list[str],
    lengths: np.ndarray,
    column: Callable[[str], Iterable[np.ndarray]],
) -> None:
    items = read_table(path, "items", info["items"])
    found = hash_content(names, lengths, column, items, info["event_types"], info["has_times"])
    if found != info["content_hash"]:
        raise mismatch_error(path)


def read_histories(path: Path, info: dict, users: list[str], lengths: np.ndarray) -> Histories:
    """Read all users of one directory into memory; arguments and errors as in `read_parts`."""
    ends = group_users(lengths, _BLOCK).ends
    parts = read_parts(path, info, users, lengths, ends)
    offsets = lengths_to_offsets(lengths)
    ids, times, types = _empty_columns(int(offsets[-1]), info)
    first = 0
    for part in parts:
        events = slice(first, first + len(part.ids))
        ids[events], times[events] = part.ids, part.times
        if types is not None:
            types[events] = part.types
        first = events.stop
    return Histories(users, offsets, ids, times, types)


def read_parts(
    path: Path, info: dict, users: list[str], lengths: np.ndarray, ends: np.ndarray
) -> Iterator[Histories]:
    """Yield all users of one directory, some consecutive ones at a time.

    Args:
      path: the directory.
      info: its description, as `dataset.json` has it.
      users, lengths: the contents of users.parquet, as `read_users` returns them.
      ends: part p ends before user `ends[p]`.

    Raises:
      UserError: a file is missing or damaged, or does not hold these users and lengths.
    """
    offsets = lengths_to_offsets(lengths)
    records = _read_records(path, info, lengths)
    first = 0
    for end in ends:
        found = list(islice(records, int(end) - first))
        if len(found) < end - first:
            raise mismatch_error(path)
        yield decode_records(found, users[first:end], offsets[first : end + 1], info, path)
        first = int(end)
    if next(records, None) is not None:
        raise mismatch_error(path)


def _read_records(path: Path, info: dict, lengths: np.ndarray) -> Iterator[dict]:
    """Yield all records, reading about `_BLOCK` events at a time."""
    blocks = iter(group_users(lengths, _BLOCK).ends.tolist())
    user, stop = 0, next(blocks, 0)
    for shard in range(info["shards"]):
        file = path / shard_name(shard, info["shards"])
        if not file.is_file():
            raise UserError(f"{file} is missing; prepare the dataset again.")
        try:
            reader = ArrayRecordReader(str(file))
            first, last = user, user + reader.num_records()
            if last > len(lengths):
                raise mismatch_error(path)
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


def decode_records(
    records: list[dict], users: list[str] | None, offsets: np.ndarray, info: dict, path: Path
) -> Histories:
    """Return records as histories.

    Args:
      records: decoded maps.
      users: the raw ids that they must have; None: whatever they have.
      offsets: int64 [U + 1]; their numbers of events are the differences.
      info: the description of the directory.
      path: the directory, for messages.

    Raises:
      UserError: a record has another user or another number of events.
    """
    offsets = offsets - offsets[0]
    ids, times, types = _empty_columns(int(offsets[-1]), info)
    found = [record.get("user", "") for record in records]
    if users is not None and found != list(users):
        raise mismatch_error(path)
    for record, start, end in zip(records, offsets[:-1], offsets[1:], strict=True):
        try:
            ids[start:end] = np.frombuffer(record["ids"], "<i4")
            times[start:end] = np.frombuffer(record["times"], "<i8")
            if types is not None:
                types[start:end] = np.frombuffer(record["types"], np.int8)
        except (ValueError, TypeError, KeyError):
            raise mismatch_error(path) from None
    return Histories(found, offsets, ids, times, types)


def _empty_columns(events: int, info: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return uninitialised ids, times and, in a dataset with event types, types."""
    types = np.empty(events, np.int8) if info["event_types"] else None
    return np.empty(events, np.int32), np.empty(events, np.int64), types


def mismatch_error(path: Path) -> UserError:
    """Return the error for files that do not belong together."""
    return UserError(
        f"{path}: the files do not match the content hash in dataset.json; prepare the dataset "
        "again."
    )
