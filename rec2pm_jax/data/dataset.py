"""Open and read a prepared dataset.

A dataset is a directory, written by `rec2pm_jax.data.prepare`:

    sequences-00000-of-000NN.arrayrecord   one record per user, in the order of raw ids
                                           (`record_files.py` describes a record)
    users.parquet                          user, index, length, last (time of the newest event)
    items.parquet                          id, raw_id, count, title, category and, with `--items`,
                                           attributes ("NAME=VALUE" lists) and vector (float32 lists)
    dataset.json                           counts, filters, rules and the content hash
    ground_truth.npz                       hidden facts, of synthetic sources only
    dropped/                               events that the filters dropped, with --keep_dropped
    delta-00001/, ..                       logs appended later, see `deltas.py`
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data.deltas import delta_paths, merge_histories, merge_users
from rec2pm_jax.data.histories import Histories
from rec2pm_jax.data.record_files import mismatch_error, read_table, read_verified
from rec2pm_jax.errors import UserError
from rec2pm_jax.os_errors import check_path

FORMAT_VERSION = 1
INFO_FILE = "dataset.json"
_FIELDS = {"content_hash": str, "users": int, "items": int, "events": int, "shards": int}
_FIELDS |= {"event_types": list, "has_times": bool, "time_origin": int, "ties": dict}
_FIELDS |= {"filters": dict, "dropped_rows": dict}
_APPENDED_FIELDS = {"base": dict, "deltas": int, "grown_from": list}  # of datasets with deltas


class UserSequence(NamedTuple):
    """One user's events, oldest first.

    Attributes:
      user: raw id.
      ids: int32 [n] item ids from 1.
      times: int32 [n] seconds since the dataset's time origin, or None without real times.
      types: int32 [n] event-type ids from 1, or None without event types.
    """

    user: str
    ids: np.ndarray
    times: np.ndarray | None
    types: np.ndarray | None


class Items:
    """The item table; row 0 of every field is padding. V = number of items + 1.

    Attributes:
      raw_ids: list of str, length V; "" at 0.
      titles: list of str, length V; the raw id where the source has no title.
      categories: list of str or None, length V.
      counts: int64 [V] events per item in the whole dataset; 0 at 0.
    """

    def __init__(self, table: pl.DataFrame):
        self.raw_ids: list[str] = ["", *table["raw_id"].to_list()]
        titles = table["title"].fill_null(table["raw_id"])
        self.titles: list[str] = ["", *titles.to_list()]
        self.categories: list[str | None] = [None, *table["category"].to_list()]
        self.counts = np.concatenate([[0], table["count"].to_numpy()]).astype(np.int64)
        self._ids = {raw: i for i, raw in enumerate(self.raw_ids) if i}

    def id_of(self, raw: str) -> int | None:
        """Return the contiguous id of a raw id, or None for an unknown item."""
        return self._ids.get(raw)


class Dataset:
    """A prepared dataset, opened by `open_dataset`.

    Sequences are read and checked at their first use, then kept in memory. A dataset is also a Grain
    random access source of `UserSequence`s.

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
      item_table: the item table as a frame, without padding.
      lengths: int32 [num_users] events per user.
    """

    def __init__(self, path: Path, info: dict, items: pl.DataFrame, users: pl.DataFrame):
        self.path = path
        self.info = info
        self.item_table = items
        self.items = Items(items)
        self.lengths = users["length"].to_numpy().astype(np.int32)
        self._users: list[str] = users["user"].to_list()
        self._indices = {user: index for index, user in enumerate(self._users)}

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
        return self._indices.get(raw)

    def user(self, index: int) -> str:
        """Return the raw id of a user."""
        return self._users[index]

    @cached_property
    def histories(self) -> Histories:
        """All sequences in flat arrays, with `times` as the source stated them.

        Raises:
          UserError: the record files are damaged or do not match `dataset.json`.
        """
        deltas = self.info.get("deltas", 0)
        if not deltas:
            return read_verified(self.path, self.info)
        return merge_histories(
            [read_verified(self.path, self.info["base"])]
            + [read_verified(d, read_info(d)) for d in delta_paths(self.path, deltas)],
            self._users,
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
        times = self.histories.times - self.time_origin
        if len(times) and not 0 <= times.min() <= times.max() <= np.iinfo(np.int32).max:
            raise UserError(
                f"{self.path}: times lie {times.min()} to {times.max()} seconds after the first, more "
                "than int32 holds; prepare the dataset again."
            )
        return times.astype(np.int32)

    def sequence(self, index: int) -> UserSequence:
        """Return the events of a user.

        Args:
          index: of the user, in [0, num_users).

        Raises:
          UserError: at the first use, if the record files are damaged.
        """
        histories = self.histories
        events = slice(histories.offsets[index], histories.offsets[index + 1])
        times, types = self.relative_times, histories.types
        return UserSequence(
            user=histories.users[index],
            ids=histories.ids[events],
            times=None if times is None else times[events],
            types=None if types is None else types[events].astype(np.int32),
        )

    def __len__(self) -> int:
        return self.num_users

    def __getitem__(self, index: int) -> UserSequence:
        return self.sequence(index)


def read_info(path: str | Path) -> dict:
    """Read the description of a prepared dataset.

    Args:
      path: the directory of the dataset.

    Returns:
      The contents of `dataset.json`.

    Raises:
      UserError: the file is missing, damaged or of another version.
    """
    check_path(path)
    file = Path(path) / INFO_FILE
    if not file.is_file():
        raise UserError(
            f"{path} holds no prepared dataset (no dataset.json); make one with "
            "`python -m launch.prepare`."
        )
    try:
        info = json.loads(file.read_text())
        version = info["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); prepare the dataset again.") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{file} has format version {version}, this program reads {FORMAT_VERSION}; prepare "
            "the dataset again."
        )
    appended = _APPENDED_FIELDS if info.get("deltas") else {}
    for name, kind in (_FIELDS | appended).items():
        if not isinstance(info.get(name), kind):
            raise UserError(
                f'{file} is damaged ("{name}" is {info.get(name)!r}); prepare the dataset again.'
            )
    return info


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
    users = read_table(path, "users", info.get("base", info)["users"])
    for delta in deltas:
        users = merge_users(users, read_table(delta, "users", read_info(delta)["users"]))
    if users.height != info["users"]:
        raise mismatch_error(path)
    # Every delta holds the whole item table after its log.
    items = read_table(deltas[-1] if deltas else path, "items", info["items"])
    return Dataset(path, info, items, users)
