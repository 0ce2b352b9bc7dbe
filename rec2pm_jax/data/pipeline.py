"""Training batches in Grain: shuffle and repeat all users, crop, then shard and batch.

A batch of the whole job depends on the seed and the step only. Example g is the g-th of the shuffled
and repeated order of users. It belongs to process g mod process_count. So the rows of the processes'
batches, interleaved, are the rows of the one-process batch.
"""

from __future__ import annotations

from typing import NamedTuple

import grain
import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.hashing import mix
from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.data.target_events import find_target_events, type_weights
from rec2pm_jax.errors import UserError

MIN_TRAIN_EVENTS = 2  # one input and one target
_INDEX_RANGE = 2**31  # the index in the batch is int32 and wraps


class TrainingUsers(NamedTuple):
    """The users to train on.

    Attributes:
      users: int64 [n] user indices with at least MIN_TRAIN_EVENTS training events.
      train_ends: int64 [n], events [0, train_end) of each may be trained on.
      skipped: number of users with fewer training events, or without a target among them.
    """

    users: np.ndarray
    train_ends: np.ndarray
    skipped: int


def select_training_users(
    dataset: Dataset, data: DataConfig, target_types: str | None = None
) -> TrainingUsers:
    """Select the users to train on, and their training events, by the protocol of `data`.

    Args:
      dataset: a prepared dataset.
      data: the protocol and the sizes of a window.
      target_types: see `config.loss.target_types`. Users without a training target of these types
        are skipped.

    Raises:
      UserError: the protocol does not fit the dataset, no user is left, or the K * S events of a
        window exceed every history.
    """
    ends = bound_rule(data, dataset, target_types=target_types).train_ends(dataset.lengths)
    chosen = ends >= MIN_TRAIN_EVENTS
    events = find_target_events(target_types, dataset)
    if events is not None:
        targets = chosen & (events.count_between(np.ones_like(ends), ends) > 0)
        if chosen.any() and not targets.any():
            raise UserError(
                f"{dataset.path}: no user has a training target of "
                f"target_types={target_types} under protocol={data.protocol}; use another "
                "protocol or other types."
            )
        chosen = targets
    users = np.flatnonzero(chosen)
    if not len(users):
        raise UserError(
            f"{dataset.path}: no user has {MIN_TRAIN_EVENTS} training events under "
            f"protocol={data.protocol} (the longest history has {dataset.lengths.max()} events)."
        )
    longest, window = int(dataset.lengths.max()), data.segments * data.segment
    if window > longest:
        raise UserError(
            f"data.segments * data.segment = {data.segments} * {data.segment} = {window} events, "
            f"but the longest history of {dataset.path} has {longest}; lower data.segments to at "
            f"most {max(longest // data.segment, 1)}, or data.segment."
        )
    return TrainingUsers(users, ends[users], dataset.num_users - len(users))


def train_iterator(
    dataset: Dataset,
    data: DataConfig,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    target_types: str | None = None,
) -> grain.DatasetIterator:
    """Return endless batches of random crops of T + 1 events, where T = data.window.

    Each batch is a dict of numpy arrays with B = batch_size / process_count rows:

        ids      int32 [B, T + 1], padded on the right with 0
        times    int32 [B, T + 1], with real times only; padding repeats the last time
        types    int32 [B, T + 1], with event types only; padding is 0
        weights  float32 [B, T + 1], with target types only: the weight of each event as a target
        index    int32 [B], the global example index (modulo 2^31)

    A crop of n training events starts uniformly in [0, max(0, n - (T + 1))]. This choice depends on
    (seed, global example index) only. The iterator's state is the number of batches consumed.

    Args:
      dataset: a prepared dataset.
      data: the protocol and the sizes of a window.
      batch_size: rows of a step over all processes.
      seed: of the shuffle and of the crops.
      process_index: this process.
      process_count: all processes.
      target_types: see `config.loss.target_types`.

    Raises:
      UserError: as `select_training_users`, or the processes cannot share a batch equally.

    >>> import tempfile
    >>> from rec2pm_jax.data.dataset import open_dataset
    >>> from rec2pm_jax.data.options import PrepareOptions
    >>> from rec2pm_jax.data.prepare import prepare
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = f"{directory}/data"
    ...     _ = prepare(PrepareOptions("synthetic", path, synthetic_users=20, progress=False))
    ...     data = DataConfig(segment=10, segments=4)  # T = 40
    ...     batch = next(train_iterator(open_dataset(path), data, batch_size=8, seed=0))
    >>> batch["ids"].shape, batch["index"]
    ((8, 41), array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int32))
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} must be a positive multiple of the number of processes "
            f"({process_count})."
        )
    selection = select_training_users(dataset, data, target_types)
    weights = None if target_types is None else type_weights(target_types, dataset)
    crop = _Crop(dataset, selection, data.window + 1, seed, weights)
    examples = grain.MapDataset.range(len(selection.users)).seed(seed).shuffle().repeat()
    mine = examples.map_with_index(_with_index)[process_index::process_count]
    batches = mine.batch(batch_size // process_count, batch_fn=np.array).map(crop)
    # One thread that reads ahead: a crop from memory is a copy, and one from files takes 30 us.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(options))


def _with_index(index: int, row: int) -> tuple[int, int]:
    return index, row


class _Crop:
    """Turn examples, int64 [B, 2] (global example index, row of the selection), into a batch."""

    def __init__(
        self,
        dataset: Dataset,
        selection: TrainingUsers,
        length: int,
        seed: int,
        weights: np.ndarray | None,
    ):
        self._dataset, self._users = dataset, selection.users
        self._events = selection.train_ends
        self._length = length
        self._seed = seed
        self._type_weights = weights

    def __call__(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        index, row = examples[:, 0], examples[:, 1]
        events = self._events[row]
        choices = np.maximum(0, events - self._length) + 1
        start = (mix(self._seed, index) % choices.astype(np.uint64)).astype(np.int64)
        taken = np.minimum(events, self._length)[:, None]  # B 1
        offset = np.arange(self._length)  # T+1
        found = self._dataset.flat_events(self._users[row])
        # Padding reads the row's last event. Then ids and types are blanked.
        source = (found.firsts + start)[:, None] + np.minimum(offset, taken - 1)
        valid = offset < taken
        batch = {
            "index": (index % _INDEX_RANGE).astype(np.int32),
            "ids": np.where(valid, found.ids[source], 0),
        }
        if found.times is not None:
            batch["times"] = found.times[source]
        if found.types is not None:
            batch["types"] = np.where(valid, found.types[source], 0).astype(np.int32)
            if self._type_weights is not None:
                batch["weights"] = self._type_weights[batch["types"]]
        return batch
