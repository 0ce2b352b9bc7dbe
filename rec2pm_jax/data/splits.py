"""Evaluation protocols: which events of a user are trained on and which are targets.

Every target at position p (from 0) is predicted from the user's whole own prefix [0, p).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rec2pm_jax.errors import UserError, nearest

SPLITS = ("validation", "test")


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

    def targets(self, n: int, split: str) -> np.ndarray:
        """int64 [count] target positions of a user with `n` events; empty below `min_events`.

        Raises:
          UserError: `split` is neither "validation" nor "test".
        """
        if split not in SPLITS:
            raise UserError(
                f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}."
                f"{nearest(split, SPLITS)}"
            )
        if n < self.min_events:
            return np.empty(0, np.int64)
        end = n - self.count if split == "validation" and self.validation else n
        return np.arange(end - self.count, end)


SPLIT_RULES = {
    rule.name: rule
    for rule in (
        LastEvents("leave_one_out", 1),
        LastEvents("last_10", 10),
        # As generative-recommenders evaluates, only to compare with its published tables: whatever is
        # chosen on "validation", the best step above all, is chosen on the test targets.
        LastEvents("genrec", 1, validation=False, mask_seen=True),
    )
}


def split_rule(name: str) -> LastEvents:
    """Returns the protocol called `name`; UserError when there is none."""
    if name not in SPLIT_RULES:
        raise UserError(
            f"Unknown protocol {name!r}; choose one of {', '.join(SPLIT_RULES)}."
            f"{nearest(name, SPLIT_RULES)}"
        )
    return SPLIT_RULES[name]
