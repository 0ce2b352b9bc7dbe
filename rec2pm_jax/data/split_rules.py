"""The rules behind the evaluation protocols of `splits.py` that count events or divide users.

A rule names a user's training events and targets. Some rules depend on times, event types or user ids,
so `SplitRule.bind` completes them with what they need of a dataset. `interval_rules.py` and
`last_basket.py` have the rules that depend on times.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.hashing import hash_strings, mix
from rec2pm_jax.data.target_events import TargetEvents
from rec2pm_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from rec2pm_jax.data.dataset import Dataset

SPLITS = ("validation", "test")
_HOLDOUT_SEED = 0x686F6C64  # fixed: who is held out depends on the user's id only
HOLDOUT_SHARE = 0.1  # of the users, under `holdout_..`


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

    def bind(
        self, data: DataConfig, dataset: Dataset, events: TargetEvents | None = None
    ) -> SplitRule:
        """Return the rule with what it needs to know of a dataset.

        Args:
          data: the settings of the protocol.
          dataset: the dataset.
          events: the events that may be targets; None for all.

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

    def state_end(self, split: str, user: int) -> int:
        """Return how many events of a user are read, if the rule predicts sets.

        Args:
          split: validation or test.
          user: index of the user in the dataset.
        """
        raise NotImplementedError(f"{self.name} predicts each target by itself")

    def request_time(self, split: str) -> int | None:
        """Return the time that all predictions are asked for, in seconds since the time origin.

        None: each is asked for at the time of its target.
        """
        return None


@dataclasses.dataclass(frozen=True)
class LastEvents(SplitRule):
    """Test on the last `count` events, validate on the `count` before, train on all before those.

    With `validation` false, training takes all but the last `count` events, and both splits have the
    same targets. A user with fewer than `min_events` events has no targets, because the first target
    would have no prefix. Callers count these users.

    Bound to target types, it counts events of these types only. Users with too few of them have no
    targets, and training takes all their events.

    Attributes:
      events: the events that may be targets; None for all.
      starts: int64 [U], the first target of each user, 0 for users without; None unless bound to types.

    >>> rule = LastEvents("leave_one_out", 1)
    >>> rule.targets(5, "validation"), rule.targets(5, "test"), rule.train_ends(np.array([5]))
    (array([3]), array([4]), array([3]))
    """

    name: str
    count: int
    validation: bool = True
    mask_seen: bool = False
    events: TargetEvents | None = None
    starts: np.ndarray | None = None

    @property
    def held_out(self) -> int:
        """Events at the end of a history that are not trained on."""
        return 2 * self.count if self.validation else self.count

    @property
    def min_events(self) -> int:
        """Fewest events of a user with targets."""
        return self.held_out + 1

    def bind(
        self, data: DataConfig, dataset: Dataset, events: TargetEvents | None = None
    ) -> LastEvents:
        """Find the first target of each user, if only some events may be targets."""
        if events is None:
            return self
        found = np.flatnonzero(events.wanted)
        first, stop = events.before[events.offsets[:-1]], events.before[events.offsets[1:]]
        enough = stop - first >= self.held_out
        starts = np.zeros(len(first), np.int64)
        place = (stop - self.held_out)[enough]
        starts[enough] = found[place] - events.offsets[:-1][enough]
        return dataclasses.replace(self, events=events, starts=starts)

    def train_end(self, n: int | np.ndarray) -> np.ndarray:
        """Return where training events end in histories of `n` events, all of which may be targets."""
        return np.maximum(np.asarray(n) - self.held_out, 0)

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        """Return where each user's targets begin."""
        lengths = np.asarray(lengths, np.int64)
        if self.starts is None:
            return self.train_end(lengths)
        return np.where(self.starts > 0, self.starts, lengths)

    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """Return which users have enough events."""
        if self.starts is None:
            return np.asarray(lengths) >= self.min_events
        return self.starts > 0

    def needs(self, split: str) -> str:
        """Return the number of events that the protocol needs."""
        if self.starts is None:
            return f"the {self.min_events} events this protocol needs"
        return f"the {self.held_out} events of the target types this protocol needs"

    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """Return the last positions; unless bound to types, the same for all users of `n` events."""
        check_split(split)
        if self.events is None or self.starts is None:
            held = (
                np.arange(n - self.held_out, n) if n >= self.min_events else np.empty(0, np.int64)
            )
        elif self.starts[user]:
            held = self.events.positions(user)[-self.held_out :]
        else:
            held = np.empty(0, np.int64)
        return held[: self.count] if split == "validation" else held[-self.count :]


@dataclasses.dataclass(frozen=True)
class HoldOut(SplitRule):
    """Predict the targets of `base` for held-out users, and train on all events of the others.

    Attributes:
      base: the rule for the targets of held-out users.
      share: of the users who are held out.
      held: bool [U], who is held out; None until bound.
    """

    name: str
    base: LastEvents
    share: float = HOLDOUT_SHARE
    held: np.ndarray | None = None
    validation: bool = True
    mask_seen: bool = False

    def bind(
        self, data: DataConfig, dataset: Dataset, events: TargetEvents | None = None
    ) -> HoldOut:
        """Divide the users by a hash of their raw ids: the same users in every dataset."""
        users = hash_strings(dataset.user(i) for i in range(dataset.num_users))
        held = mix(_HOLDOUT_SEED, users) / 2.0**64 < self.share
        return dataclasses.replace(self, base=self.base.bind(data, dataset, events), held=held)

    def settings(self, data: DataConfig) -> dict[str, object]:
        """Return the share of held-out users."""
        return {"holdout_fraction": self.share}

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        """Return 0 for held-out users and the whole length for the others."""
        return np.where(self._bound(), 0, np.asarray(lengths, np.int64))

    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """Return which users are held out and have targets under `base`."""
        return self._bound() & self.base.eligible(lengths, split)

    def needs(self, split: str) -> str:
        """Return the needs of `base`, and being held out."""
        return f"{self.base.needs(split)} and is held out (a tenth of the users is)"

    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """Return the positions that `base` names; empty for users who are trained on."""
        positions = self.base.targets(n, split, user)
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
