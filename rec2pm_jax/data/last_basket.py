"""The protocol `last_basket`: predict all items of a user's last basket at once.

A basket is all events of a user with one timestamp.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.split_rules import SplitRule, check_split
from rec2pm_jax.errors import UserError

if TYPE_CHECKING:
    from rec2pm_jax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class LastBasket(SplitRule):
    """Test on a user's last basket, validate on the one before, train on all before both.

    A first basket is never a target, because no event comes before it. So a user with one basket has
    no targets, and a user with two has test targets only. Neither is trained on.

    Attributes:
      starts: int64 [U], first event of the last basket but one (0 if there is none); None until
        bound.
      tests: int64 [U], first event of the last basket; None until bound.

    >>> rule = LastBasket(starts=np.array([3]), tests=np.array([5]))
    >>> rule.targets(8, "validation", 0), rule.targets(8, "test", 0), rule.train_ends(np.array([8]))
    (array([3, 4]), array([5, 6, 7]), array([3]))
    """

    name: str = "last_basket"
    validation: bool = True
    mask_seen: bool = False
    predicts_sets: bool = True
    starts: np.ndarray | None = None
    tests: np.ndarray | None = None

    def bind(self, data: DataConfig, dataset: Dataset) -> LastBasket:
        """Find each user's last two baskets.

        Raises:
          UserError: no real times.
        """
        if dataset.relative_times is None:
            raise UserError(
                f"protocol=last_basket needs times, and {dataset.path} has none; use leave_one_out or "
                "last_10."
            )
        offsets = dataset.histories.offsets
        begins = find_baskets(offsets, dataset.relative_times)
        last = np.searchsorted(begins, offsets[1:]) - 1
        tests = begins[last] - offsets[:-1]
        starts = np.where(tests > 0, begins[last - 1] - offsets[:-1], 0)
        return dataclasses.replace(self, starts=starts, tests=tests)

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        """Return the first event of each user's last basket but one."""
        return self._bound()[0]

    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """Return which users have a basket before the one of `split`."""
        starts, tests = self._bound()
        return (starts if split == "validation" else tests) > 0

    def needs(self, split: str) -> str:
        """Return the number of baskets that a user needs."""
        return f"the {3 if split == 'validation' else 2} baskets this protocol needs"

    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """Return the positions of the events in the basket of `split`."""
        check_split(split)
        starts, tests = self._bound()
        first, test = int(starts[user]), int(tests[user])
        first, stop = (first, test) if split == "validation" else (test, n)
        return np.arange(first, stop) if first else np.empty(0, np.int64)

    def _bound(self) -> tuple[np.ndarray, np.ndarray]:
        if self.starts is None or self.tests is None:
            raise ValueError("Bind this rule to a dataset first.")
        return self.starts, self.tests


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
