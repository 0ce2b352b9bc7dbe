"""Open and read a prepared dataset.

A dataset is a directory, written by `rec2pm_jax.data.prepare`:

    sequences-00000-of-000NN.arrayrecord   one record per user, in the order of raw ids
                                           (`record_files.py` describes a record)
    users.parquet                          user, index, length, last (time of the newest event)
    items.parquet                          id, raw_id, count, title, category and, with `--items`,
                                           attributes ("NAME=VALUE" lists) and vector (float32 lists)
    dataset.json                           counts, filters, rules and the content hash
    raw_ids/                               look-ups of raw ids, of a large dataset (`id_map.py`)
    ground_truth.npz                       hidden facts, of synthetic sources only
    dropped/                               events that the filters dropped, with --keep_dropped
    delta-00001/, ..                       logs appended later, see `deltas.py`
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.deltas import delta_paths, merge_histories, merge_users
from rec2pm_jax.data.histories import Histories, group_users
from rec2pm_jax.data.id_map import IdList, IdMap, fits_in_memory, open_ids
from rec2pm_jax.data.info import read_info
from rec2pm_jax.data.items import Items
from rec2pm_jax.data.record_files import mismatch_error, read_table, read_verified
from rec2pm_jax.data.record_reader import MergedReader, RecordReader, open_reader
from rec2pm_jax.data.sequences import (
    BLOCK_EVENTS,
    EventBlock,
    FlatEvents,
    UserSequence,
    cut_sequence,
)
from rec2pm_jax.errors import UserError

__all__ = ["Dataset", "Items", "UserSequence", "open_dataset"]

IN_MEMORY_EVENTS = 20_000_000  # a larger dataset is read from its files, user by user


class Dataset:
    """A prepared dataset, opened by `open_dataset`.

    Nothing but the lengths is read before it is used. Up to `IN_MEMORY_EVENTS` events are then read
    at once, checked by the content hash and kept. Of more events, each user is read from the record
    files when it is asked for, and checked (`record_reader.py`). Raw ids of large tables stay on disk
    (`id_map.py`). A dataset is also a Grain random access source of `UserSequence`s.

    >>> import tempfile
    >>> from rec2pm_jax.data.options import PrepareOptions
    >>> from rec2pm_jax.data.prepare import prepare
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     log = f"{directory}/log.csv"
    ...     with open(log, "w") as file:
    ...         _ = file.write("user,item,timestamp\\nann,tea,60\\nann,milk,90\\nbob,tea,70\\n")
    ...     options = PrepareOptions("interactions", f"{directory}/data", log, progress=False)
    ...     _ = prepare(options)
    ...     dataset = open_dataset(f"{directory}/data")
    ...     ann = dataset.sequence(dataset.user_index("ann"))  # reads the files
    >>> len(dataset), dataset.num_items, dataset.lengths
    (2, 2, array([2, 1], dtype=int32))
    >>> ann.ids, ann.times + dataset.time_origin, [dataset.items.titles[i] for i in ann.ids]
    (array([1, 2], dtype=int32), array([60, 90], dtype=int32), ['tea', 'milk'])

    Attributes:
      path: the directory.
      info: the contents of `dataset.json`.
      items: the item table, with row 0 for padding.
      lengths: int32 [num_users] events per user.
    """

    def __init__(self, path: Path, info: dict, items: Items, users: pl.DataFrame):
        """Take what `open_dataset` has read; `users` has the column user if the raw ids are read."""
        self.path = path
        self.info = info
        self.items = items
        self.lengths = users["length"].to_numpy().astype(np.int32)
        if "user" in users.columns:
            self.user_ids = IdList(users["user"].to_list())

    @cached_property
    def user_ids(self) -> IdList | IdMap:
        """Raw ids of all users, in memory or on disk; `find` returns the index of one."""
        rows = self.num_users
        return open_ids(
            self.path, "users", rows, lambda: read_table(self.path, "users", rows, ["user"])["user"]
        )

    @property
    def item_table(self) -> pl.DataFrame:
        """The item table as a frame, without padding."""
        return self.items.table()

    @property
    def in_memory(self) -> bool:
        """Whether all events are kept in memory once one is read."""
        return self.info["events"] <= IN_MEMORY_EVENTS

    @property
    def content_hash(self) -> str:
        """sha256 of the content; with deltas, a hash of the hashes of the parts."""
        return self.info["content_hash"]

    @property
    def num_items(self) -> int:
        """Number of items without padding; the embedding table has num_items + 1 rows."""
        return self.info["items"]

    @property
    def num_users(self) -> int:
        """Number of users."""
        return self.info["users"]

    @property
    def has_times(self) -> bool:
        """Whether times are real seconds rather than ranks."""
        return self.info["has_times"]

    @property
    def time_origin(self) -> int:
        """Seconds since 1970 of time 0: the minute of the first event.

        Minutes since the origin are then those of the clock, and an origin that moves when an older log
        is appended moves by whole minutes.
        """
        return self.info["time_origin"] // 60 * 60

    @property
    def event_types(self) -> list[str]:
        """Names of the event types; type id = position + 1. Empty without event types."""
        return self.info["event_types"]

    def user_index(self, raw: str) -> int | None:
        """Return the index of a raw user id, or None for an unknown user."""
        return self.user_ids.find(raw)

    def user(self, index: int) -> str:
        """Return the raw id of a user."""
        return self.user_ids[index]

    @cached_property
    def histories(self) -> Histories:
        """All sequences in flat arrays in memory, with `times` as the source stated them.

        Raises:
          UserError: the record files are damaged or do not match `dataset.json`.
        """
        deltas = self.info.get("deltas", 0)
        if not deltas:
            return read_verified(self.path, self.info)
        return merge_histories(
            [read_verified(self.path, self.info["base"])]
            + [read_verified(d, read_info(d)) for d in delta_paths(self.path, deltas)],
            self.user_ids[:],
            self.items.raw_ids[1:],
            self.merging_rule,
            self.info["ties"]["seed"],
        )

    @property
    def merging_rule(self) -> str:
        """The rule for equal times of events from several logs: "shuffle" or "keep"."""
        # Seconds alone cannot restore an order that a finer key determined.
        return "keep" if self.info.get("order_key") else self.info["ties"]["rule"]

    @cached_property
    def relative_times(self) -> np.ndarray | None:
        """Seconds since `time_origin` of all events, int32 [E], or None without real times.

        Raises:
          UserError: int32 cannot hold them.
        """
        if not self.has_times:
            return None
        return self._shift(self.histories.times)

    def _shift(self, times: np.ndarray) -> np.ndarray:
        """Return seconds since `time_origin`, int32; UserError if they do not fit."""
        times = times - self.time_origin
        if len(times) and not 0 <= times.min() <= times.max() <= np.iinfo(np.int32).max:
            raise UserError(
                f"{self.path}: times lie {times.min()} to {times.max()} seconds after the first, more "
                "than int32 holds; prepare the dataset again."
            )
        return times.astype(np.int32)

    @cached_property
    def _reader(self) -> RecordReader | MergedReader:
        """Reads single users from the files, appended logs included."""
        return open_reader(
            self.path,
            self.info,
            self.user_ids,
            lambda item: self.items.raw_ids[item],
            self.merging_rule,
        )

    def sequence(self, index: int) -> UserSequence:
        """Return the events of a user.

        Args:
          index: of the user, in [0, num_users).

        Raises:
          IndexError: there is no such user.
          UserError: the files that are read are damaged.
        """
        if not 0 <= index < self.num_users:
            raise IndexError(f"user {index} of {self.num_users}")
        if not self.in_memory:
            return self.sequences(np.array([index]))[0]
        histories = self.histories
        events = slice(histories.offsets[index], histories.offsets[index + 1])
        return cut_sequence(histories.users[index], self.relative_times, histories, events)

    def sequences(self, indices: np.ndarray) -> list[UserSequence]:
        """Return the events of several users; as `sequence`, but faster where files are read.

        Args:
          indices: int [n], of the users, in any order.
        """
        if self.in_memory:
            return [self.sequence(int(index)) for index in indices]
        found = self._reader.read(indices)
        times = self._shift(found.times) if self.has_times else None
        bounds = zip(found.users, found.offsets[:-1], found.offsets[1:], strict=True)
        return [cut_sequence(user, times, found, slice(start, end)) for user, start, end in bounds]

    def flat_events(self, indices: np.ndarray) -> FlatEvents:
        """Return the events of several users in flat arrays, without copies if they are in memory.

        Args:
          indices: int [n], of the users, in any order.
        """
        if self.in_memory:
            all_ = self.histories
            return FlatEvents(all_.offsets[indices], all_.ids, self.relative_times, all_.types)
        found = self._reader.read(indices)
        times = self._shift(found.times) if self.has_times else None
        return FlatEvents(found.offsets[:-1], found.ids, times, found.types)

    def blocks(self) -> Iterator[EventBlock]:
        """Yield the events of all users: one block if they are in memory, else many."""
        if self.in_memory:
            found = self.histories
            users = slice(0, self.num_users)
            yield EventBlock(users, found.offsets, found.ids, self.relative_times, found.types)
            return
        firsts = group_users(self.lengths.astype(np.int64), BLOCK_EVENTS).firsts
        for first, stop in itertools.pairwise(firsts.tolist()):
            found = self._reader.read(np.arange(first, stop))
            times = self._shift(found.times) if self.has_times else None
            yield EventBlock(slice(first, stop), found.offsets, found.ids, times, found.types)

    def __len__(self) -> int:
        return self.num_users

    def __getitem__(self, index: int) -> UserSequence:
        return self.sequence(index)


def open_dataset(path: str | Path) -> Dataset:
    """Open a prepared dataset, appended logs included.

    Args:
      path: the directory that `launch.prepare` or `rec2pm_jax.data.prepare.prepare` wrote.

    Returns:
      The dataset; `Dataset` shows an example.

    Raises:
      UserError: the dataset is missing, damaged or of another version.
    """
    path = Path(path)
    info = read_info(path)
    deltas = delta_paths(path, info.get("deltas", 0))
    base = info.get("base", info)
    # The raw ids of a small dataset are read at once, and so belong to one state of its files.
    whole = deltas or fits_in_memory(base["users"])
    users = read_table(path, "users", base["users"], ["user", "length"] if whole else ["length"])
    for delta in deltas:
        users = merge_users(users, read_table(delta, "users", read_info(delta)["users"]))
    if users.height != info["users"]:
        raise mismatch_error(path)
    # Every delta holds the whole item table after its log.
    items = Items.open(deltas[-1] if deltas else path, info["items"])
    return Dataset(path, info, items, users)
