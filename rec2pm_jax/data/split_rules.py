"""The rules behind the evaluation protocols of `splits.py`.

A rule names a user's training events and targets. Some rules depend on times or on user ids, so
`SplitRule.bind` completes them with what they need of a dataset.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.dates import format_time, parse_time
from rec2pm_jax.data.hashing import hash_strings, mix
from rec2pm_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from rec2pm_jax.data.dataset import Dataset

SPLITS = ("validation", "test")
_HOLDOUT_SEED = 0x686F6C64  # fixed: who is held out depends on the user's id and the fraction only


class SplitRule(abc.ABC):
    """The rule of one protocol.

    Attributes:
      name: the protocol, as `--config.data.protocol` names it.
      validation: whether validation has targets that differ from those of the test.
      mask_seen: whether the ranking leaves out the items of the events that a model reads raw.
      predicts_sets: whether a user's targets are one set of items, ranked once from the events
        before the first of them.
    """

    name: str
    validation: bool
    mask_seen: bool
    predicts_sets: bool = False

    def bind(self, data: DataConfig, dataset: Dataset) -> SplitRule:
        """Return the rule with what it needs to know of a dataset.

        Args:
          data: the settings of the protocol.
          dataset: the dataset.

        Raises:
          UserError: the protocol does not fit the dataset.
        """
        return self

    def settings(self, data: DataConfig) -> dict[str, object]:
        """Return the fields of `data` that this protocol reads, for records."""
        return {}

    @abc.abstractmethod
    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        """Return where each user's training events end: [0, train_end) may be trained on.

        Args:
          lengths: int [U], events of every user of the dataset.

        Returns:
          int64 [U].
        """

    @abc.abstractmethod
    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """Return which users of a dataset have targets.

        Args:
          lengths: int [U], events of every user of the dataset.
          split: validation or test.

        Returns:
          bool [U].
        """

    @abc.abstractmethod
    def needs(self, split: str) -> str:
        """Return what a user needs to have targets, as a phrase for errors."""

    @abc.abstractmethod
    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """Return the positions of a user's targets.

        Args:
          n: the number of the user's events.
          split: validation or test.
          user: index of the user in the dataset; rules that treat all users alike ignore it.

        Returns:
          int64, ascending; empty for a user without targets.

        Raises:
          UserError: unknown split.
        """


@dataclasses.dataclass(frozen=True)
class LastEvents(SplitRule):
    """Test on the last `count` events, validate on the `count` before, train on all before those.

    With `validation` false, training takes all but the last `count` events, and both splits have the
    same targets. A user with fewer than `min_events` events has no targets, because the first target
    would have no prefix. Callers count these users.

    >>> rule = LastEvents("leave_one_out", 1)
    >>> rule.targets(5, "validation"), rule.targets(5, "test"), rule.train_ends(np.array([5]))
    (array([3]), array([4]), array([3]))
    """

    name: str
    count: int
    validation: bool = True
    mask_seen: bool = False

    @property
    def held_out(self) -> int:
        """Events at the end of a history that are not trained on."""
        return 2 * self.count if self.validation else self.count

    @property
    def min_events(self) -> int:
        """Fewest events of a user with targets."""
        return self.held_out + 1

    def train_end(self, n: int | np.ndarray) -> np.ndarray:
        """Return where training events end in histories of `n` events."""
        return np.maximum(np.asarray(n) - self.held_out, 0)

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        """Return `train_end` of all users."""
        return self.train_end(np.asarray(lengths, np.int64))

    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """Return which users have `min_events` events."""
        return np.asarray(lengths) >= self.min_events

    def needs(self, split: str) -> str:
        """Return the number of events that the protocol needs."""
        return f"the {self.min_events} events this protocol needs"

    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """Return the last positions, the same for all users of `n` events."""
        check_split(split)
        if n < self.min_events:
            return np.empty(0, np.int64)
        end = n - self.count if split == "validation" and self.validation else n
        return np.arange(end - self.count, end)


@dataclasses.dataclass(frozen=True)
class Temporal(SplitRule):
    """Test on the events from `split_time` T on, validate on the `validation_days` before T.

    Training takes what is older than both. A user's first event is never a target. Users who begin
    after T are evaluated from their second event on.

    Attributes:
      starts: int64 [U], first event that is not trained on; None until bound.
      tests: int64 [U], first event at T or later; None until bound.
    """

    name: str = "temporal"
    validation: bool = True
    mask_seen: bool = False
    starts: np.ndarray | None = None
    tests: np.ndarray | None = None

    def bind(self, data: DataConfig, dataset: Dataset) -> Temporal:
        """Count each user's events before the two times.

        Raises:
          UserError: no real times, an unreadable T, or no events before or after the two times.
        """
        if dataset.relative_times is None:
            raise UserError(
                f"protocol=temporal needs times, and {dataset.path} has none; use leave_one_out or "
                "last_10."
            )
        times = dataset.relative_times.astype(np.int64) + dataset.time_origin
        test = parse_time(data.split_time or "")
        start = test - round(data.validation_days * 86_400)
        if not times.min() < start or not test <= times.max():
            raise UserError(
                f"config.data.split_time={data.split_time} with {data.validation_days:g} days of "
                f"validation before it leaves no events to train on or to test: {dataset.path} spans "
                f"{format_time(times.min())} to {format_time(times.max())}."
            )
        offsets = dataset.histories.offsets
        before = [np.concatenate([[0], np.cumsum(times < time)]) for time in (start, test)]
        starts, tests = (np.diff(count[offsets]) for count in before)
        return dataclasses.replace(self, starts=starts, tests=tests)

    def settings(self, data: DataConfig) -> dict[str, object]:
        """Return T and the length of validation."""
        return {"split_time": data.split_time, "validation_days": data.validation_days}

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        """Return the first event of each user that is not trained on."""
        return self._bound()[0]

    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """Return which users have an event in the interval of `split`, their first one apart."""
        starts, tests = self._bound()
        first, stop = (starts, tests) if split == "validation" else (tests, lengths)
        return np.maximum(first, 1) < stop

    def needs(self, split: str) -> str:
        """Return the interval in which a user needs an event."""
        return f"an event to predict in the {split} interval of config.data.split_time"

    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """Return the positions of the events of user `user` in the interval of `split`."""
        check_split(split)
        starts, tests = self._bound()
        first, test = int(starts[user]), int(tests[user])
        first, stop = (first, test) if split == "validation" else (test, n)
        return np.arange(max(first, 1), stop)

    def _bound(self) -> tuple[np.ndarray, np.ndarray]:
        if self.starts is None or self.tests is None:
            raise ValueError("Bind this rule to a dataset first.")
        return self.starts, self.tests


@dataclasses.dataclass(frozen=True)
class HoldOut(SplitRule):
    """Predict the targets of `base` for held-out users, and train on all events of the others.

    Attributes:
      base: the rule for the targets of held-out users.
      held: bool [U], who is held out; None until bound.
    """

    name: str
    base: LastEvents
    held: np.ndarray | None = None
    validation: bool = True
    mask_seen: bool = False

    def bind(self, data: DataConfig, dataset: Dataset) -> HoldOut:
        """Divide the users by a hash of their raw ids: the same users in every dataset."""
        users = hash_strings(dataset.user(i) for i in range(dataset.num_users))
        share = mix(_HOLDOUT_SEED, users) / 2.0**64
        return dataclasses.replace(self, held=share < data.holdout_fraction)

    def settings(self, data: DataConfig) -> dict[str, object]:
        """Return the share of held-out users."""
        return {"holdout_fraction": data.holdout_fraction}

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        """Return 0 for held-out users and the whole length for the others."""
        return np.where(self._bound(), 0, np.asarray(lengths, np.int64))

    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """Return which users are held out and have targets under `base`."""
        return self._bound() & self.base.eligible(lengths, split)

    def needs(self, split: str) -> str:
        """Return the needs of `base`, and being held out."""
        return f"{self.base.needs(split)} and is held out (config.data.holdout_fraction)"

    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """Return the positions that `base` names; empty for users who are trained on."""
        positions = self.base.targets(n, split)
        return positions if self._bound()[user] else positions[:0]

    def _bound(self) -> np.ndarray:
        if self.held is None:
            raise ValueError("Bind this rule to a dataset first.")
        return self.held


def check_split(split: str) -> None:
    """Raise UserError for an unknown split."""
    if split not in SPLITS:
        raise UserError(
            f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.{nearest(split, SPLITS)}"
        )
