"""Stage 4, write: the files of a dataset, as `dataset.py` describes them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from rec2pm_jax.data.id_map import fits_in_memory, write_id_map
from rec2pm_jax.data.info import INFO_FILE
from rec2pm_jax.data.polars_io import write_parquet
from rec2pm_jax.data.prepare.order import OrderedLog
from rec2pm_jax.data.record_files import encode_records, shard_bounds, shard_name, write_records

SHARD_EVENTS = 5_000_000


def count_shards(users: int, events: int, shards: int = 0) -> int:
    """Return the number of record files.

    Args:
      users: number of users; a shard has at least one.
      events: number of events.
      shards: the number asked for; 0: one per SHARD_EVENTS events.
    """
    return min(shards or 1 + events // SHARD_EVENTS, users)


def write_sequences(
    directory: Path, log: OrderedLog, shards: int = 0, progress: bool = True
) -> int:
    """Write the record files.

    Args:
      directory: of the dataset.
      log: all users in their order.
      shards: number of files; 0: one per SHARD_EVENTS events.
      progress: show a progress bar.

    Returns:
      The number of files.

    Raises:
      OSError: the disk is full.
    """
    users, events = len(log.users.counts), int(log.users.counts.sum())
    shards = count_shards(users, events, shards)
    ends = shard_bounds(users, shards)[1:].tolist()
    with tqdm(total=users, desc="writing", unit="user", disable=not progress) as bar:
        records = (record for part in log.parts() for record in encode_records(part))
        done = 0
        for shard, end in enumerate(ends):
            write_records(directory / shard_name(shard, shards), islice(records, end - done))
            bar.update(end - done)
            done = end
    return shards


def write_users(directory: Path, names: pl.Series, lengths: np.ndarray, newest: np.ndarray) -> None:
    """Write users.parquet and, of many users, the index of their raw ids.

    Args:
      directory: of the dataset.
      names: raw ids in the order of the dataset.
      lengths: int [U], events of each.
      newest: int64 [U], time of each user's newest event.
    """
    table = pl.DataFrame({"user": names, "length": lengths.astype(np.int32), "last": newest})
    table = table.with_row_index("index").select("user", "index", "length", "last")
    write_parquet(table, directory / "users.parquet")
    if not fits_in_memory(len(names)):
        write_id_map(directory, "users", names)


def write_items(directory: Path, items: pl.DataFrame) -> None:
    """Write items.parquet and, of many items, the index of their raw ids."""
    write_parquet(items, directory / "items.parquet")
    if not fits_in_memory(items.height):
        write_id_map(directory, "items", pl.concat([pl.Series([""]), items["raw_id"]]))


def replace_info(directory: Path, info: Mapping) -> None:
    """Replace dataset.json by a new one at once, so that readers see the old or the new one.

    Raises:
      OSError: the disk is full.
    """
    partial = directory / f"{INFO_FILE}.partial"
    try:
        partial.write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n")
        os.replace(partial, directory / INFO_FILE)
    finally:
        partial.unlink(missing_ok=True)


def write_info(directory: Path, info: Mapping, name: str = INFO_FILE) -> None:
    """Write dataset.json, or a copy of it under another name."""
    (directory / name).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n")
