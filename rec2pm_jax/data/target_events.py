"""The events that may be targets: all of them, or those of `config.loss.target_types`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rec2pm_jax.config.target_types import parse_target_types
from rec2pm_jax.data.histories import lengths_to_offsets
from rec2pm_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from rec2pm_jax.data.dataset import Dataset


class TargetEvents(NamedTuple):
    """The events of a dataset that have a target type.

    Attributes:
      offsets: int64 [U + 1]; user u has the events [offsets[u], offsets[u + 1]).
      wanted: bool [E].
      before: int64 [E + 1], the number of wanted events before each event.
    """

    offsets: np.ndarray
    wanted: np.ndarray
    before: np.ndarray

    def positions(self, user: int) -> np.ndarray:
        """Return the positions of a user's target events in the history, int64, ascending."""
        return np.flatnonzero(self.wanted[self.offsets[user] : self.offsets[user + 1]])

    def keep(self, positions: np.ndarray, user: int) -> np.ndarray:
        """Return those of a user's `positions` that are target events."""
        return positions[self.wanted[self.offsets[user] + positions]]

    def count_between(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Return how many target events each user has at positions [start, stop): int64 [U]."""
        first = self.offsets[:-1]
        stops = np.maximum(starts, stops)
        return self.before[first + stops] - self.before[first + starts]


def type_weights(target_types: str, dataset: Dataset) -> np.ndarray:
    """Return the weight of each event type of a dataset.

    Args:
      target_types: see `parse_target_types`.
      dataset: a prepared dataset.

    Returns:
      float32 [types + 1], by type id; 0 for types that are not predicted, and at 0.

    Raises:
      UserError: the dataset has no event types, or no event of a type.
    """
    names = dataset.event_types
    if not names:
        raise UserError(
            f"target_types={target_types}, but {dataset.path} has no event types: leave it "
            "out, or prepare the log with its column of event types."
        )
    counts = np.zeros(len(names) + 1, np.int64)
    for block in dataset.blocks():
        assert block.types is not None, "a dataset with names of types has types"
        counts += np.bincount(block.types, minlength=len(counts))
    found = [name for name, count in zip(names, counts[1:], strict=True) if count]
    weights = np.zeros(len(names) + 1, np.float32)
    for name, weight in parse_target_types(target_types).items():
        if name not in found:
            raise UserError(
                f"target_types={target_types}: {dataset.path} has no event of type "
                f"{name!r}; it has {', '.join(found)}.{nearest(name, found)}"
            )
        weights[1 + names.index(name)] = weight
    return weights


def find_target_events(target_types: str | None, dataset: Dataset) -> TargetEvents | None:
    """Return the events that may be targets; None if all may.

    Args:
      target_types: see `parse_target_types`; None for all events.
      dataset: a prepared dataset.

    Raises:
      UserError: as `type_weights`.
    """
    if target_types is None:
        return None
    weights = type_weights(target_types, dataset)
    wanted = np.concatenate([weights[block.types] > 0 for block in dataset.blocks()])
    before = np.concatenate([[0], np.cumsum(wanted)])
    return TargetEvents(lengths_to_offsets(dataset.lengths), wanted, before)
