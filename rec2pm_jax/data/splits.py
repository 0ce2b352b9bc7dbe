"""Evaluation protocols: which events of a user are trained on and which are targets.

Every target at position p (from 0) is predicted from the user's whole own prefix [0, p). A rule is
taken from `split_rule` by name and bound to a dataset before use, as some look at times or at who the
user is:

    leave_one_out, last_10          the newest events of everybody
    genrec                          as generative-recommenders evaluates
    temporal                        everybody's events from one moment on, as in production
    holdout_leave_one_out, .._10    the newest events of people the model never saw
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.hashing import hash_strings, mix
from rec2pm_jax.data.moments import parse_moment, show_moment
from rec2pm_jax.errors import UserError, nearest

SPLITS = ("validation", "test")
_HOLDOUT_SEED = 0x686F6C64  # fixed: who is held out depends on the user's id and the fraction only


@dataclasses.dataclass(frozen=True)
class LastEvents:
    """Test = the last `count` events, validation = the `count` before, training = all before those.

    Without `validation` there is none: training takes all but the last `count` events, and both splits
    name these. A user with fewer than `min_events` events has no targets (callers count these users):
    it would leave the first target without any prefix.

    Attributes:
      mask_seen: items of the events that a model reads raw are left out of the ranking.
    """

    name: str
    count: int
    validation: bool = True
    mask_seen: bool = False

    def bind(self, data: DataConfig, dataset) -> LastEvents:
        return self

    @property
    def held_out(self) -> int:
        """Events at the end of a history that are not trained on."""
        return 2 * self.count if self.validation else self.count

    @property
    def min_events(self) -> int:
        return self.held_out + 1

    def train_end(self, n):
        """Events [0, train_end) may be trained on; `n` is an int or an int array of lengths."""
        return np.maximum(np.asarray(n) - self.held_out, 0)

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        """`train_end` of all users of a dataset, int64 [U], from their lengths [U]."""
        return self.train_end(np.asarray(lengths, np.int64))

    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """Which users of a dataset have targets: bool [U]."""
        return np.asarray(lengths) >= self.min_events

    def needs(self, split: str) -> str:
        """What a user needs to have targets, for errors."""
        return f"the {self.min_events} events this protocol needs"

    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """int64 [count] target positions of a user with `n` events; empty below `min_events`.

        Args:
          user: index of the user in the dataset; the same for everybody here.

        Raises:
          UserError: `split` is neither "validation" nor "test".
        """
        _check_split(split)
        if n < self.min_events:
            return np.empty(0, np.int64)
        end = n - self.count if split == "validation" and self.validation else n
        return np.arange(end - self.count, end)


@dataclasses.dataclass(frozen=True)
class Temporal:
    """Test = events from `split_time` T on, validation = the `validation_days` before T.

    Training takes what is older than both. A user's first event is never a target; people who come
    after T are evaluated from their second event on.

    Attributes:
      starts: int64 [U], first event that is not trained on; None until bound.
      tests: int64 [U], first event at T or later.
    """

    name: str = "temporal"
    validation: bool = True
    mask_seen: bool = False
    starts: np.ndarray | None = None
    tests: np.ndarray | None = None

    def bind(self, data: DataConfig, dataset) -> Temporal:
        """Counts each user's events before the two moments.

        Raises:
          UserError: no real times, an unreadable T, or nothing before or after the moments.
        """
        if dataset.relative_times is None:
            raise UserError(
                f"protocol=temporal needs times, and {dataset.path} has none; use leave_one_out or "
                "last_10."
            )
        times = dataset.relative_times.astype(np.int64) + dataset.time_origin
        test = parse_moment(data.split_time)
        start = test - round(data.validation_days * 86_400)
        if not times.min() < start or not test <= times.max():
            raise UserError(
                f"config.data.split_time={data.split_time} with {data.validation_days:g} days of "
                f"validation before it leaves no events to train on or to test: {dataset.path} visible "
                f"{show_moment(times.min())} to {show_moment(times.max())}."
            )
        offsets = dataset.histories.offsets
        before = [np.concatenate([[0], np.cumsum(times < moment)]) for moment in (start, test)]
        starts, tests = (np.diff(count[offsets]) for count in before)
        return dataclasses.replace(self, starts=starts, tests=tests)

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        return self.starts

    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        first, stop = (self.starts, self.tests) if split == "validation" else (self.tests, lengths)
        return np.maximum(first, 1) < stop

    def needs(self, split: str) -> str:
        return f"an event to predict in the {split} interval of config.data.split_time"

    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """int64 positions of the events of user `user` in the interval of `split`."""
        _check_split(split)
        first, test = int(self.starts[user]), int(self.tests[user])
        first, stop = (first, test) if split == "validation" else (test, n)
        return np.arange(max(first, 1), stop)


@dataclasses.dataclass(frozen=True)
class HoldOut:
    """Targets of `base`, for a share of users of whom nothing is trained on; all of all others is.

    Attributes:
      held: bool [U], who is held out; None until bound.
    """

    base: LastEvents
    held: np.ndarray | None = None
    validation: bool = True
    mask_seen: bool = False

    @property
    def name(self) -> str:
        return f"holdout_{self.base.name}"

    def bind(self, data: DataConfig, dataset) -> HoldOut:
        """Divides the users by a hash of their raw ids: the same people in every dataset."""
        users = hash_strings(dataset.user(i) for i in range(dataset.num_users))
        share = mix(_HOLDOUT_SEED, users) / 2.0**64
        return dataclasses.replace(self, held=share < data.holdout_fraction)

    def train_ends(self, lengths: np.ndarray) -> np.ndarray:
        return np.where(self.held, 0, np.asarray(lengths, np.int64))

    def eligible(self, lengths: np.ndarray, split: str) -> np.ndarray:
        return self.held & self.base.eligible(lengths, split)

    def needs(self, split: str) -> str:
        return f"{self.base.needs(split)} and is held out (config.data.holdout_fraction)"

    def targets(self, n: int, split: str, user: int = -1) -> np.ndarray:
        """int64 positions as `base` names them; empty for users who are trained on."""
        positions = self.base.targets(n, split)
        return positions if self.held[user] else positions[:0]


SplitRule = LastEvents | Temporal | HoldOut

_LEAVE_ONE_OUT, _LAST_10 = LastEvents("leave_one_out", 1), LastEvents("last_10", 10)
SPLIT_RULES: dict[str, SplitRule] = {
    rule.name: rule
    for rule in (
        _LEAVE_ONE_OUT,
        _LAST_10,
        # As generative-recommenders evaluates, only to compare with its published tables: whatever is
        # chosen on "validation", the best step above all, is chosen on the test targets.
        LastEvents("genrec", 1, validation=False, mask_seen=True),
        Temporal(),
        HoldOut(_LEAVE_ONE_OUT),
        HoldOut(_LAST_10),
    )
}


def split_rule(name: str) -> SplitRule:
    """Returns the protocol called `name`, not bound to a dataset; UserError when there is none."""
    if name not in SPLIT_RULES:
        raise UserError(
            f"Unknown protocol {name!r}; choose one of {', '.join(SPLIT_RULES)}."
            f"{nearest(name, SPLIT_RULES)}"
        )
    return SPLIT_RULES[name]


def bound_rule(data: DataConfig, dataset, protocol: str = "") -> SplitRule:
    """The rule of `protocol` (empty: of `data.protocol`) for a dataset; UserError as its `bind`."""
    return split_rule(protocol or data.protocol).bind(data, dataset)


def settings(data: DataConfig, protocol: str = "") -> dict[str, object]:
    """What beside its name tells one use of a protocol from another, for records."""
    match split_rule(protocol or data.protocol):
        case Temporal():
            return {"split_time": data.split_time, "validation_days": data.validation_days}
        case HoldOut():
            return {"holdout_fraction": data.holdout_fraction}
    return {}


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(
            f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.{nearest(split, SPLITS)}"
        )
