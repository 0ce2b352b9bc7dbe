"""Evaluation protocols: the events of a user to train on, and the events to predict (targets).

Every target at position p (from 0) is predicted from the user's whole prefix [0, p). Only `last_basket`
and `temporal_set` predict all targets of a user from one prefix.

    leave_one_out, last_10          the newest events of every user
    last_basket                     the newest events of equal time of every user, as a set
    temporal                        all events from one time on, as in production
    temporal_set                    the same as one set, from the state frozen at that time
    holdout_leave_one_out, .._10    the newest events of users that training never sees
    genrec                          as generative-recommenders evaluates

`bound_rule` returns the rule of a protocol for a dataset. The rules are in `split_rules.py`,
`interval_rules.py` and `last_basket.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.interval_rules import Temporal, TemporalSet
from rec2pm_jax.data.last_basket import LastBasket
from rec2pm_jax.data.sequences import read_in_order
from rec2pm_jax.data.split_rules import SPLITS, HoldOut, LastEvents, SplitRule
from rec2pm_jax.data.target_events import find_target_events
from rec2pm_jax.errors import UserError, nearest

__all__ = [
    "LAST_10",
    "LEAVE_ONE_OUT",
    "SPLITS",
    "SPLIT_RULES",
    "SplitRule",
    "bound_rule",
    "count_training_events",
    "settings",
    "split_rule",
    "training_ids",
]

_USERS = 10_000  # whose events are counted at a time

LEAVE_ONE_OUT, LAST_10 = LastEvents("leave_one_out", 1), LastEvents("last_10", 10)
SPLIT_RULES: dict[str, SplitRule] = {
    rule.name: rule
    for rule in (
        LEAVE_ONE_OUT,
        LAST_10,
        LastBasket(),
        # Only to compare with the published tables of generative-recommenders: whatever is chosen on
        # "validation", the best step above all, is chosen on the test targets.
        LastEvents("genrec", 1, validation=False, mask_seen=True),
        Temporal(),
        TemporalSet(),
        HoldOut("holdout_leave_one_out", LEAVE_ONE_OUT),
        HoldOut("holdout_last_10", LAST_10),
    )
}


def split_rule(name: str) -> SplitRule:
    """Return the rule of a protocol, not bound to a dataset.

    Args:
      name: a key of `SPLIT_RULES`.

    Raises:
      UserError: unknown protocol.

    >>> split_rule("last_10").targets(25, "test")
    array([15, 16, 17, 18, 19, 20, 21, 22, 23, 24])
    """
    if name not in SPLIT_RULES:
        raise UserError(
            f"Unknown protocol {name!r}; choose one of {', '.join(SPLIT_RULES)}."
            f"{nearest(name, SPLIT_RULES)}"
        )
    return SPLIT_RULES[name]


def bound_rule(
    data: DataConfig, dataset: Any, protocol: str = "", target_types: str | None = None
) -> SplitRule:
    """Return the rule of a protocol, bound to a dataset.

    Args:
      data: the protocol and its settings.
      dataset: a `Dataset`, or a view of some of its users.
      protocol: takes the place of `data.protocol` if not empty.
      target_types: event types that may be targets, see `config.loss.target_types`; None for all.

    Raises:
      UserError: unknown protocol, or one that does not fit the dataset, or a type that it lacks.

    >>> import tempfile
    >>> import numpy as np
    >>> from rec2pm_jax.data.dataset import open_dataset
    >>> from rec2pm_jax.data.options import PrepareOptions
    >>> from rec2pm_jax.data.prepare import prepare
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = f"{directory}/data"
    ...     _ = prepare(PrepareOptions("synthetic", path, synthetic_users=100, progress=False))
    ...     dataset = open_dataset(path)
    ...     rule = bound_rule(DataConfig(protocol="holdout_last_10"), dataset)
    >>> int(np.sum(rule.train_ends(dataset.lengths) == 0))  # users that training never sees
    12
    """
    events = find_target_events(target_types, dataset)
    return split_rule(protocol or data.protocol).bind(data, dataset, events)


def count_training_events(dataset: Any, rule: SplitRule) -> np.ndarray:
    """Count the training events of each item.

    Args:
      dataset: a `Dataset`, or a view of some of its users.
      rule: bound to it.

    Returns:
      int64 [V], row 0 for padding.
    """
    counts = np.zeros(dataset.num_items + 1, np.int64)
    waiting: list[np.ndarray] = []
    for ids in training_ids(dataset, rule):
        waiting.append(ids)
        if len(waiting) == _USERS:
            np.add.at(counts, np.concatenate(waiting), 1)
            waiting = []
    np.add.at(counts, np.concatenate([np.empty(0, np.int32), *waiting]), 1)
    return counts


def training_ids(dataset: Any, rule: SplitRule) -> Iterator[np.ndarray]:
    """Yield the item ids of each user's training events, int32 [n], without holding all of them.

    Args:
      dataset: a `Dataset`, or a view of some of its users.
      rule: bound to it.
    """
    ends = rule.train_ends(dataset.lengths)
    for sequence, end in zip(read_in_order(dataset), ends.tolist(), strict=True):
        yield sequence.ids[:end]


def settings(data: DataConfig, protocol: str = "") -> dict[str, object]:
    """Return the settings that distinguish two uses of one protocol, for records.

    Args:
      data: the protocol and its settings.
      protocol: takes the place of `data.protocol` if not empty.

    >>> settings(DataConfig(protocol="holdout_last_10"))
    {'holdout_fraction': 0.1}
    """
    return split_rule(protocol or data.protocol).settings(data)
