"""Rules whose targets are a user's events in an interval of time.

Temporal       each event is predicted from the events before it
TemporalSet    the state is frozen at the start of the interval; what follows is one set of items
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.dates import format_time, parse_time
from rec2pm_jax.data.split_rules import SplitRule, check_split
from rec2pm_jax.data.target_events import TargetEvents
from rec2pm_jax.errors import UserError

if TYPE_CHECKING:
    from rec2pm_jax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class IntervalRule(SplitRule):
    """Validate on the events [start, test) of each user, test on those from `test` on.

    Attributes:
      starts: int64 [U], first event of validation, where training ends; None until bound.
      tests: int64 [U], first event of the test; None until bound.
      events: the events that may be targets; None for all.
    """

    name: str
    validation: bool = True
    mask_seen: bool = False
    starts: np.ndarray | None = None
    tests: np.ndarray | None = None
    events: TargetEvents | None = None

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        """Return the first event of each user that is not trained on."""
        return self._bound()[0]

    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """Return which users have an event before a target in the interval of `split`."""
        starts, tests = self._bound()
        first, stop = (starts, tests) if split == "validation" else (tests, np.asarray(lengths))
        usable = first > 0 if self.predicts_sets else np.ones(len(first), bool)
        if self.events is not None:
            return usable & (self.events.count_between(np.maximum(first, 1), stop) > 0)
        return usable & (np.maximum(first, 1) < stop)

    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """Return the positions of the targets of user `user` in the interval of `split`."""
        check_split(split)
        starts, tests = self._bound()
        first, test = int(starts[user]), int(tests[user])
        first, stop = (first, test) if split == "validation" else (test, n)
        if self.predicts_sets and not first:
            return np.empty(0, np.int64)
        positions = np.arange(max(first, 1), stop)
        return positions if self.events is None else self.events.keep(positions, user)

    def state_end(self, split: str, user: int) -> int:
        """Return the first event of the interval."""
        starts, tests = self._bound()
        return int((starts if split == "validation" else tests)[user])

    def _bound(self) -> tuple[np.ndarray, np.ndarray]:
        if self.starts is None or self.tests is None:
            raise ValueError("Bind this rule to a dataset first.")
        return self.starts, self.tests


@dataclasses.dataclass(frozen=True)
class Temporal(IntervalRule):
    """Test on the events from `split_time` T on, validate on the `validation_days` before T.

    Training takes what is older than both. A user's first event is never a target. Users who begin
    after T are evaluated from their second event on.

    Attributes:
      moments: both times, in seconds since the time origin; None until bound.
    """

    name: str = "temporal"
    moments: tuple[int, int] | None = None

    def bind(
        self, data: DataConfig, dataset: Dataset, events: TargetEvents | None = None
    ) -> Temporal:
        """Count each user's events before the two times.

        Raises:
          UserError: no real times, an unreadable T, or no events before or after the two times.
        """
        if not dataset.has_times:
            raise UserError(
                f"protocol={self.name} needs times, and {dataset.path} has none; use leave_one_out or "
                "last_10."
            )
        origin = dataset.time_origin
        test = parse_time(data.split_time or "") - origin
        start = test - round(data.validation_days * 86_400)
        starts, tests = np.empty((2, dataset.num_users), np.int64)
        first, last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        for block in dataset.blocks():
            assert block.times is not None, "a dataset with times has them"
            times = block.times.astype(np.int64)
            first, last = min(first, times.min()), max(last, times.max())
            for time, ends in ((start, starts), (test, tests)):
                before = np.concatenate([[0], np.cumsum(times < time)])
                ends[block.users] = np.diff(before[block.offsets])
        if not first < start or not test <= last:
            raise UserError(
                f"config.data.split_time={data.split_time} with {data.validation_days:g} days of "
                f"validation before it leaves no events to train on or to test: {dataset.path} spans "
                f"{format_time(first + origin)} to {format_time(last + origin)}."
            )
        return dataclasses.replace(
            self, starts=starts, tests=tests, events=events, moments=(start, test)
        )

    def settings(self, data: DataConfig) -> dict[str, object]:
        """Return T and the length of validation."""
        return {"split_time": data.split_time, "validation_days": data.validation_days}

    def needs(self, split: str) -> str:
        """Return the interval in which a user needs an event."""
        kind = "an event" if self.events is None else "an event of the target types"
        return f"{kind} to predict in the {split} interval of config.data.split_time"


@dataclasses.dataclass(frozen=True)
class TemporalSet(Temporal):
    """Freeze states at T, and predict all items of a user from T on as one set, ranked once.

    For validation the state is frozen `validation_days` before T, and the set ends at T. Users without
    events before have no state, and no targets. Training is that of `Temporal`.
    """

    name: str = "temporal_set"
    predicts_sets: bool = True

    def request_time(self, split: str) -> int | None:
        """Return the time at which the states of `split` are frozen."""
        if self.moments is None:
            raise ValueError("Bind this rule to a dataset first.")
        return self.moments[0 if split == "validation" else 1]
