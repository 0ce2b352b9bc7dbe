"""The prepared dataset on disk, written under a temporary name and then renamed.

    sequences-00000-of-000NN.arrayrecord   one record per user, users in the order of raw ids
    items.parquet                          id, raw_id, count, title, category
    users.parquet                          user, index, length
    dataset.json                           what this is and how it was made
    ground_truth.npz                       synthetic sources only

A record is a msgpack map {user: str, ids: int32 bytes, times: int64 bytes, types: int8 bytes or
nil}, little-endian; `times` are the source's own timestamps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgpack
import numpy as np
import polars as pl
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from rec2pm_jax.data.histories import Histories
from rec2pm_jax.errors import UserError

SHARD_EVENTS = 5_000_000
INFO_FILE = "dataset.json"


def shard_name(shard: int, shards: int) -> str:
    return f"sequences-{shard:05d}-of-{shards:05d}.arrayrecord"


def write_sequences(
    directory: Path, histories: Histories, shards: int = 0, progress: bool = True
) -> int:
    """Writes the record files; returns how many (`shards`, or one per SHARD_EVENTS events if 0)."""
    users = len(histories.users)
    shards = min(shards or 1 + len(histories.ids) // SHARD_EVENTS, users)
    bounds = np.linspace(0, users, shards + 1).astype(int)
    with tqdm(total=users, desc="writing", unit="user", disable=not progress) as bar:
        for shard in range(shards):
            # One record per group: readers fetch single users at random.
            writer = ArrayRecordWriter(str(directory / shard_name(shard, shards)), "group_size:1")
            for user in range(bounds[shard], bounds[shard + 1]):
                writer.write(_record(histories, user))
                bar.update()
            writer.close()
    return shards


def _record(histories: Histories, user: int) -> bytes:
    events = slice(histories.offsets[user], histories.offsets[user + 1])
    types = histories.types
    return msgpack.packb(
        {
            "user": histories.users[user],
            "ids": histories.ids[events].astype("<i4").tobytes(),
            "times": histories.times[events].astype("<i8").tobytes(),
            "types": None if types is None else types[events].tobytes(),
        }
    )


def write_tables(
    directory: Path,
    histories: Histories,
    items: pl.DataFrame,
    ground_truth: Mapping[str, np.ndarray] | None,
) -> None:
    items.write_parquet(directory / "items.parquet")
    users = pl.DataFrame({"user": histories.users, "length": histories.lengths})
    users.with_row_index("index").select("user", "index", "length").write_parquet(
        directory / "users.parquet"
    )
    if ground_truth is not None:
        np.savez(directory / "ground_truth.npz", **ground_truth)


def write_info(directory: Path, info: Mapping) -> None:
    (directory / INFO_FILE).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a temporary directory beside `target` that becomes `target` if the block succeeds."""
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    retired = target.with_name(f"{target.name}.old-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"Cannot write beside {target}: {error.strerror}.") from error
    try:
        yield temporary
        if target.exists():
            target.rename(retired)
        temporary.rename(target)
    except OSError as error:
        if retired.exists() and not target.exists():
            retired.rename(target)
        raise UserError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
