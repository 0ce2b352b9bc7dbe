"""The protocol `last_basket`: predict all items of a user's last basket at once.

A basket is all events of a user with one timestamp.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.interval_rules import IntervalRule
from rec2pm_jax.data.target_events import TargetEvents
from rec2pm_jax.errors import UserError

if TYPE_CHECKING:
    from rec2pm_jax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class LastBasket(IntervalRule):
    """Test on a user's last basket, validate on the one before, train on all before both.

    A first basket is never a target, because no event comes before it. So a user with one basket has
    no targets, and a user with two has test targets only. Neither is trained on.

    Bound to target types, only baskets with an event of these types count, and only these events are
    targets. Training takes all events of users without targets.

    Attributes:
      starts: int64 [U], first event of the last basket but one (0 if there is none); None until
        bound.
      tests: int64 [U], first event of the last basket; None until bound.

    >>> rule = LastBasket(starts=np.array([3]), tests=np.array([5]))
    >>> rule.targets(8, "validation", 0), rule.targets(8, "test", 0), rule.train_ends(np.array([8]))
    (array([3, 4]), array([5, 6, 7]), array([3]))
    """

    name: str = "last_basket"
    predicts_sets: bool = True

    def bind(
        self, data: DataConfig, dataset: Dataset, events: TargetEvents | None = None
    ) -> LastBasket:
        """Find each user's last two baskets.

        Raises:
          UserError: no real times.
        """
        if not dataset.has_times:
            raise UserError(
                f"protocol=last_basket needs times, and {dataset.path} has none; use leave_one_out or "
                "last_10."
            )
        tests, starts = np.empty((2, dataset.num_users), np.int64)
        done = 0  # events of the blocks before
        for block in dataset.blocks():
            assert block.times is not None, "a dataset with times has them"
            begins = find_baskets(block.offsets, block.times)
            if events is not None:
                wanted = events.wanted[done : done + len(block.ids)]
                begins = begins[np.add.reduceat(wanted, begins, dtype=np.int64) > 0]
            done += len(block.ids)
            for n, firsts in ((1, tests), (2, starts)):
                firsts[block.users] = _nth_last(begins, block.offsets, n)
        return dataclasses.replace(self, starts=starts, tests=tests, events=events)

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        """Return the first event of each user's last basket but one."""
        starts, tests = self._bound()
        if self.events is None:
            return starts
        return np.select([starts > 0, tests > 0], [starts, tests], np.asarray(lengths, np.int64))

    def needs(self, split: str) -> str:
        """Return the number of baskets that a user needs."""
        kind = "" if self.events is None else " with events of the target types"
        return f"the {3 if split == 'validation' else 2} baskets{kind} this protocol needs"


def _nth_last(begins: np.ndarray, offsets: np.ndarray, n: int) -> np.ndarray:
    """Return the first event of each user's n-th last basket, 0 for users without: int64 [U].

    Args:
      begins: int [baskets], first event of each basket that counts, ascending.
      offsets: int [U + 1]; user u's events are [offsets[u], offsets[u + 1]).
      n: 1 for the last basket.
    """
    place = np.searchsorted(begins, offsets[1:]) - n
    found = begins[np.maximum(place, 0)] if len(begins) else np.zeros(len(place), np.int64)
    own = (place >= 0) & (found >= offsets[:-1])
    return np.where(own, found - offsets[:-1], 0)


def find_baskets(offsets: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the index of the first event of each basket, ascending.

    >>> find_baskets(np.array([0, 3, 5]), np.array([7, 7, 9, 9, 9]))
    array([0, 2, 3])

    Args:
      offsets: int [U + 1]; user u's events are [offsets[u], offsets[u + 1]).
      times: int [E], ascending within a user.

    Returns:
      int64 [baskets].
    """
    first = np.append(True, np.diff(times) != 0)[: len(times)]
    first[offsets[:-1][offsets[:-1] < offsets[1:]]] = True
    return np.flatnonzero(first)
