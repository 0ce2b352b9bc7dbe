"""Single users of a dataset, read from its record files when they are needed.

What is read is checked: a shard for the number of its records and the user of the first one that is
read, a record for its checksum (by ArrayRecord) and its number of events. So nothing has to be read
beforehand, and the memory does not grow with the events.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgpack
import numpy as np
import polars as pl
from array_record.python.array_record_module import ArrayRecordReader

from rec2pm_jax.data.deltas import delta_paths, merge_histories
from rec2pm_jax.data.histories import Histories, lengths_to_offsets
from rec2pm_jax.data.info import read_info
from rec2pm_jax.data.record_files import (
    decode_records,
    mismatch_error,
    read_table,
    shard_bounds,
    shard_name,
)
from rec2pm_jax.errors import UserError

_MAX_OPEN = 512  # shards that are open at a time
_AT_RANDOM = "readahead_buffer_size:0,max_parallelism:0"


class RecordReader:
    """Random access to the users of one directory; several threads may share it."""

    def __init__(
        self,
        path: Path,
        info: dict,
        lengths: np.ndarray,
        user: Callable[[int], str],
        current_hash: Callable[[], str],
    ):
        """Prepare to read; nothing is opened yet.

        Args:
          path: the directory.
          info: its description, as `dataset.json` has it.
          lengths: int [U], events of each of its users.
          user: returns the raw id of a user.
          current_hash: reads the content hash that the directory has now.
        """
        self._path, self._info, self._lengths = path, info, lengths
        self._user, self._current_hash = user, current_hash
        self._bounds = shard_bounds(len(lengths), info["shards"])
        self._open: OrderedDict[int, ArrayRecordReader] = OrderedDict()
        self._checked: set[int] = set()  # shards
        self._lock = threading.Lock()

    def read(self, rows: np.ndarray) -> Histories:
        """Return the events of some users.

        Args:
          rows: int [n], users of this directory in any order.

        Raises:
          UserError: a file is missing or damaged, or the dataset was replaced meanwhile.
        """
        rows = np.asarray(rows, np.int64)
        shards = np.searchsorted(self._bounds, rows, side="right") - 1
        records: list[dict] = [{}] * len(rows)
        with self._lock:
            for shard in np.unique(shards).tolist():
                places = np.flatnonzero(shards == shard)
                found = self._read_shard(shard, rows[places])
                for place, record in zip(places.tolist(), found, strict=True):
                    records[place] = record
        offsets = lengths_to_offsets(self._lengths[rows])
        return decode_records(records, None, offsets, self._info, self._path)

    def _read_shard(self, shard: int, rows: np.ndarray) -> list[dict]:
        """Return the records of users of one shard."""
        file = self._path / shard_name(shard, self._info["shards"])
        try:
            reader = self._reader(shard, file)
            places = (rows - self._bounds[shard]).tolist()
            if len(rows) > 1 and (np.diff(rows) == 1).all():
                found = reader.read(places[0], places[-1] + 1)
            else:  # a range of one takes 5 us, a list of places 250 us
                found = [reader.read(place, place + 1)[0] for place in places]
            records = [msgpack.unpackb(record) for record in found]
        except UserError:
            raise
        except Exception as error:  # the reader raises plain RuntimeErrors, msgpack several kinds
            raise UserError(f"{file} is damaged; prepare the dataset again. ({error})") from error
        if shard not in self._checked:
            if records[0].get("user") != self._user(int(rows[0])):
                raise mismatch_error(self._path)
            self._checked.add(shard)
        return records

    def _reader(self, shard: int, file: Path) -> ArrayRecordReader:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if not file.is_file():
            raise UserError(f"{file} is missing; prepare the dataset again.")
        if self._current_hash() != self._info["content_hash"]:
            raise UserError(
                f"{self._path} was replaced by another dataset while it was read; start again."
            )
        reader = ArrayRecordReader(str(file), _AT_RANDOM)
        if not reader.ok():
            reader.read()  # raises what is wrong
        if reader.num_records() != self._bounds[shard + 1] - self._bounds[shard]:
            raise mismatch_error(self._path)
        self._open[shard] = reader
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return reader


class MergedReader:
    """The users of a dataset with the logs appended to it; each user's parts are merged when read."""

    def __init__(
        self,
        parts: list[tuple[RecordReader, np.ndarray]],
        raw_item: Callable[[int], str],
        ties: str,
        seed: int,
    ):
        """Prepare to read.

        Args:
          parts: of the dataset and of each delta, the reader and int32 [U], the row of each user of
            the whole there, -1 for users without events there.
          raw_item: returns the raw id of an item id.
          ties, seed: as in `deltas.merge_histories`.
        """
        self._parts, self._raw_item, self._ties, self._seed = parts, raw_item, ties, seed

    def read(self, users: np.ndarray) -> Histories:
        """Return the events of some users; arguments and errors as `RecordReader.read`."""
        pieces: list[list[Histories]] = [[] for _ in users]
        for reader, row_of_user in self._parts:
            rows = row_of_user[users]
            present = np.flatnonzero(rows >= 0)
            part = reader.read(rows[present])
            for place, piece in zip(present.tolist(), _split(part), strict=True):
                pieces[place].append(piece)
        return _join([self._merge(found) for found in pieces])

    def _merge(self, pieces: list[Histories]) -> Histories:
        """Return the events of one user in the order of time."""
        if len(pieces) == 1:
            return pieces[0]
        # The order depends on the hash of an item's raw id, not on its number.
        items = np.unique(np.concatenate([piece.ids for piece in pieces]))
        pieces = [
            p._replace(ids=(1 + np.searchsorted(items, p.ids)).astype(np.int32)) for p in pieces
        ]
        names = [self._raw_item(int(item)) for item in items]
        merged = merge_histories(pieces, list(pieces[0].users), names, self._ties, self._seed)
        return merged._replace(ids=items[merged.ids - 1])


def open_reader(
    path: Path,
    info: dict,
    user_ids: Sequence[str],
    raw_item: Callable[[int], str],
    ties: str,
) -> RecordReader | MergedReader:
    """Return what reads the users of a dataset, appended logs included.

    Args:
      path: the directory of the dataset.
      info: its description.
      user_ids: raw ids of all users; those of the base come first.
      raw_item, ties: as in `MergedReader`.

    Raises:
      UserError: a table of users is missing or damaged.
    """

    def open_part(path: Path, info: dict, user: Callable[[int], str]) -> RecordReader:
        lengths = read_table(path, "users", info["users"], ["length"])["length"].to_numpy()

        def current_hash() -> str:
            found = read_info(path)
            return found.get("base", found)["content_hash"]

        return RecordReader(path, info, lengths, user, current_hash)

    deltas = delta_paths(path, info.get("deltas", 0))
    base_info = info.get("base", info)
    base = open_part(path, base_info, lambda row: user_ids[row])
    if not deltas:
        return base
    rows = np.arange(len(user_ids), dtype=np.int32)
    parts = [(base, np.where(rows < base_info["users"], rows, np.int32(-1)))]
    index = pl.DataFrame({"user": list(user_ids)}).with_row_index("index")
    for delta in deltas:
        delta_info = read_info(delta)
        users = read_table(delta, "users", delta_info["users"], ["user"])
        found = users.join(index, on="user", how="left", maintain_order="left")["index"]
        row_of_user = np.full(len(user_ids), -1, np.int32)
        row_of_user[found.to_numpy()] = np.arange(len(found), dtype=np.int32)
        parts.append((open_part(delta, delta_info, users["user"].__getitem__), row_of_user))
    return MergedReader(parts, raw_item, ties, info["ties"]["seed"])


def _split(part: Histories) -> Iterator[Histories]:
    """Yield the events of each user."""
    for user, start, end in zip(part.users, part.offsets[:-1], part.offsets[1:], strict=True):
        types = None if part.types is None else part.types[start:end]
        offsets = np.array([0, end - start])
        yield Histories([user], offsets, part.ids[start:end], part.times[start:end], types)


def _join(users: list[Histories]) -> Histories:
    """Return the histories of users end to end."""
    lengths = [len(user.ids) for user in users]
    types = [user.types for user in users if user.types is not None]
    return Histories(
        [user.users[0] for user in users],
        lengths_to_offsets(np.array(lengths, np.int64)),
        np.concatenate([user.ids for user in users]),
        np.concatenate([user.times for user in users]),
        np.concatenate(types) if types else None,
    )
