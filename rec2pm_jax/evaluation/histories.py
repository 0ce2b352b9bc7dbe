"""Event histories of the evaluated users, in flat arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rec2pm_jax.typing import Events


class EvaluationData(Protocol):
    """The part of `data.dataset.Dataset` that evaluation uses; a view of some users has it too."""

    @property
    def lengths(self) -> np.ndarray:
        """Events of each user: int [num_users]."""

    @property
    def num_users(self) -> int:
        """Number of users."""

    @property
    def num_items(self) -> int:
        """Number of items, without padding."""

    @property
    def content_hash(self) -> str:
        """Name of the contents."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about the dataset, see `dataset.json`."""

    def sequence(self, index: int) -> Any:
        """Return the `UserSequence` of one user."""

    def sequences(self, indices: np.ndarray) -> Sequence[Any]:
        """Return the `UserSequence`s of several users."""


class Histories(NamedTuple):
    """Complete sequences of the selected users, concatenated.

    Attributes:
      users: int64 [U], indices in the dataset, ascending.
      offsets: int64 [U + 1]; user u's events are [offsets[u], offsets[u + 1]).
      ids: int32 [E], item ids.
      times: int32 [E], seconds since the dataset's time origin, or None.
      types: int32 [E], event-type ids, or None.
    """

    users: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    times: np.ndarray | None
    types: np.ndarray | None

    def window(
        self, user: np.ndarray, start: np.ndarray, length: np.ndarray, width: int
    ) -> tuple[Events, np.ndarray]:
        """Gather events [start, start + length) of each user, padded on the right to `width`.

        Args:
          user: int [B], indices into `users`.
          start: int [B], position of the first event.
          length: int [B], number of events.
          width: number of columns, at least the largest length.

        Returns:
          Events with numpy fields int32 [B, width], and their validity, bool [B, width].
        """
        column = np.arange(width)
        valid = column < length[:, None]
        index = np.where(valid, (self.offsets[user] + start)[:, None] + column, 0)

        def gather(flat: np.ndarray | None) -> Any:
            return None if flat is None else np.where(valid, flat[index], 0).astype(np.int32)

        return Events(gather(self.ids), gather(self.times), gather(self.types)), valid

    def next_time(self, user: np.ndarray, end: np.ndarray) -> np.ndarray | None:
        """Return the time of event `end` of each user, or of the last event if there is none.

        Args:
          user: int [B], indices into `users`.
          end: int [B] or [B, n], positions of events.

        Returns:
          int32 of the shape of `end`, in seconds since the time origin; None without times.
        """
        if self.times is None:
            return None
        first, stop = self.offsets[user], self.offsets[user + 1]
        if end.ndim == 2:
            first, stop = first[:, None], stop[:, None]
        return self.times[np.minimum(first + end, stop - 1)].astype(np.int32)


def load_histories(dataset: EvaluationData, users: np.ndarray) -> Histories:
    """Read the sequences of `users` (indices in the dataset) into memory.

    Each event takes 4 bytes, and 4 more each for its time and its type.
    """
    sequences = dataset.sequences(users)
    offsets = np.concatenate([[0], np.cumsum([len(s.ids) for s in sequences])]).astype(np.int64)
    return Histories(
        np.asarray(users, np.int64),
        offsets,
        np.concatenate([s.ids for s in sequences]).astype(np.int32),
        _join([s.times for s in sequences]),
        _join([s.types for s in sequences]),
    )


def _join(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Concatenate the optional columns of all users; a dataset has a column for all or for none."""
    present = [array for array in arrays if array is not None]
    return np.concatenate(present).astype(np.int32) if present else None
