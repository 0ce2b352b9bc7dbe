"""The files of a prepared dataset.

    sequences-00000-of-000NN.arrayrecord   one record per user, users in the order of raw ids
    items.parquet                          id, raw_id, count, title, category
    users.parquet                          user, index, length, last (time of the newest event)
    dropped/                               events that the filters dropped, see `dropped.py`
    dataset.json                           what this is and how it was made
    ground_truth.npz                       synthetic sources only

A record is a msgpack map {user: str, ids: int32 bytes, times: int64 bytes, types: int8 bytes or
nil}, little-endian; `times` are the source's own timestamps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import msgpack
import numpy as np
import polars as pl
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from rec2pm_jax.data.columns import write_parquet
from rec2pm_jax.data.histories import Histories

SHARD_EVENTS = 5_000_000
INFO_FILE = "dataset.json"


def shard_name(shard: int, shards: int) -> str:
    return f"sequences-{shard:05d}-of-{shards:05d}.arrayrecord"


def shard_count(users: int, events: int, shards: int = 0) -> int:
    """`shards`, or one per SHARD_EVENTS events if 0; at most one per user."""
    return min(shards or 1 + events // SHARD_EVENTS, users)


def write_sequences(
    directory: Path,
    parts: Iterable[Histories],
    users: int,
    events: int,
    shards: int = 0,
    progress: bool = True,
) -> int:
    """Writes the record files; returns how many (`shards`, or one per SHARD_EVENTS events if 0).

    Args:
      parts: the users in order, some at a time; `users` and `events` in all.
    """
    shards = shard_count(users, events, shards)
    ends = np.linspace(0, users, shards + 1).astype(int)[1:]
    with tqdm(total=users, desc="writing", unit="user", disable=not progress) as bar:
        all_records = (record for part in parts for record in records(part))
        done = 0
        for shard, end in enumerate(ends):
            write_records(directory / shard_name(shard, shards), islice(all_records, end - done))
            bar.update(end - done)
            done = end
    return shards


def write_records(path: Path, found: Iterable[bytes]) -> None:
    """Writes a record file; OSError when the disk is full."""
    # One record per group: readers fetch single users at random.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    try:
        for record in found:
            writer.write(record)
        writer.close()
    except RuntimeError as error:  # what the writer raises for the errors of the file system
        raise OSError(str(error)) from error


def records(part: Histories) -> Iterator[bytes]:
    """One record per user."""
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


def write_tables(
    directory: Path,
    users: pl.Series,
    lengths: np.ndarray,
    lasts: np.ndarray,
    items: pl.DataFrame,
    ground_truth: Mapping[str, np.ndarray] | None,
) -> None:
    write_parquet(items, directory / "items.parquet")
    table = pl.DataFrame({"user": users, "length": lengths.astype(np.int32), "last": lasts})
    table = table.with_row_index("index").select("user", "index", "length", "last")
    write_parquet(table, directory / "users.parquet")
    if ground_truth is not None:
        np.savez(directory / "ground_truth.npz", **ground_truth)


def write_info(directory: Path, info: Mapping) -> None:
    (directory / INFO_FILE).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n")
