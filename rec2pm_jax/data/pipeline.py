"""Training batches in Grain: shuffle and repeat all users, crop, then shard and batch.

Batch = f(seed, step) for the whole job. Example g (the global example index, counted over the
shuffled and repeated order of users) belongs to process g mod process_count, so the rows of the
processes' batches, interleaved, are the rows of the one-process batch.
"""

from __future__ import annotations

from typing import NamedTuple

import grain
import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.hashing import mix
from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.errors import UserError

MIN_TRAIN_EVENTS = 2  # one input and one target
_INDEX_RANGE = 2**31  # the index in the batch is int32 and wraps


class TrainingUsers(NamedTuple):
    """Who is trained on.

    Attributes:
      users: int64 [n] user indices with at least MIN_TRAIN_EVENTS training events.
      train_ends: int64 [n], events [0, train_end) of each may be trained on.
      skipped: users left out because they have fewer.
    """

    users: np.ndarray
    train_ends: np.ndarray
    skipped: int


def training_users(dataset: Dataset, data: DataConfig) -> TrainingUsers:
    """Applies the protocol of `data`.

    Raises:
      UserError: nobody is left, or a window's K * S events exceed every training history.
    """
    ends = split_rule(data.protocol).train_end(dataset.lengths.astype(np.int64))
    users = np.flatnonzero(ends >= MIN_TRAIN_EVENTS)
    if not len(users):
        raise UserError(
            f"{dataset.path}: no user has {MIN_TRAIN_EVENTS} training events under "
            f"protocol={data.protocol} (the longest history has {dataset.lengths.max()} events)."
        )
    longest = int(ends.max())
    if data.segments * data.segment > longest:
        raise UserError(
            f"data.segments * data.segment = {data.segments} * {data.segment} = "
            f"{data.segments * data.segment} events per window, but the longest training history "
            f"of {dataset.path} has {longest}; lower data.segments to at most "
            f"{max(longest // data.segment, 1)} or data.segment."
        )
    return TrainingUsers(users, ends[users], dataset.num_users - len(users))


def train_iterator(
    dataset: Dataset,
    data: DataConfig,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless batches of random crops of T + 1 events, T = data.window.

    Each batch is a dict of numpy arrays with B = batch_size / process_count rows:
      ids: int32 [B, T + 1], padded on the right with 0.
      times: int32 [B, T + 1], with real times only; padding repeats the last time.
      types: int32 [B, T + 1], with event types only; padding is 0.
      index: int32 [B], the global example index (modulo 2^31).

    A crop starts uniformly in [0, max(0, n - (T + 1))] for a user with n training events and depends
    only on (seed, global example index). Users with fewer than 2 training events are left out
    (`training_users` counts them). The iterator's state is the number of batches consumed.

    Raises:
      UserError: as `training_users`, or a batch size that the processes cannot share.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} must be a positive multiple of the number of processes "
            f"({process_count})."
        )
    selection = training_users(dataset, data)
    crop = _Crop(dataset, selection, data.window + 1, seed)
    examples = grain.MapDataset.range(len(selection.users)).seed(seed).shuffle().repeat()
    mine = examples.map_with_index(crop)[process_index::process_count]
    batches = mine.batch(batch_size // process_count, batch_fn=_stack)
    # One read-ahead thread; more would only contend, as a crop is a memory copy.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(options))


class _Crop:
    """(global example index, position in the selection) -> one row of the batch."""

    def __init__(self, dataset: Dataset, selection: TrainingUsers, length: int, seed: int):
        histories = dataset.histories
        self._first = histories.offsets[selection.users].tolist()
        self._events = selection.train_ends.tolist()
        self._ids, self._types = histories.ids, histories.types
        self._times = dataset.relative_times
        self._length = length
        self._seed = seed

    def __call__(self, index: int, position: int) -> dict[str, np.ndarray]:
        events = self._events[position]
        start = self._first[position] + self._start(index, events)
        taken = min(events, self._length)
        crop = slice(start, start + taken)
        row = {"index": np.int32(index % _INDEX_RANGE), "ids": self._pad(self._ids[crop], 0)}
        if self._times is not None:
            row["times"] = self._pad(self._times[crop], self._times[start + taken - 1])
        if self._types is not None:
            row["types"] = self._pad(self._types[crop], 0)
        return row

    def _start(self, index: int, events: int) -> int:
        choices = max(0, events - self._length) + 1
        return int(mix(self._seed, np.uint64(index)) % np.uint64(choices))

    def _pad(self, values: np.ndarray, padding: int) -> np.ndarray:
        row = np.full(self._length, padding, np.int32)
        row[: len(values)] = values
        return row


def _stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
