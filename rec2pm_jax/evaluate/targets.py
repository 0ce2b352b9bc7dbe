"""What is predicted and from which rows: host-side integer arithmetic only.

A target is one event (user, n): the event at position n, predicted from the n events before it. A
row is one raw window that is read once with one memory; all targets of a user whose `ReadPlan`s
agree share a row, because reads are causal. A chain is one run of memory updates; rows of a user
that start folding at the same segment share a chain and stop along it at different points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.typing import Events


class Histories(NamedTuple):
    """Whole sequences of the selected users, end to end.

    Attributes:
      users: int64 [U], indices in the dataset, ascending.
      offsets: int64 [U + 1]; user u's events are [offsets[u], offsets[u + 1]).
      ids: int32 [E]. times: int32 [E] seconds since the time origin, or None. types: likewise.
    """

    users: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    times: np.ndarray | None
    types: np.ndarray | None

    def window(self, user: np.ndarray, start: np.ndarray, length: np.ndarray, width: int):
        """Gathers events [start, start + length) of each user, padded on the right to `width`.

        Args:
          user: int [B], indices into `users`. start, length: int [B].
          width: columns; must be at least every length.

        Returns:
          (Events with numpy fields [B, width], valid bool [B, width]).
        """
        column = np.arange(width)
        valid = column < length[:, None]
        index = np.where(valid, (self.offsets[user] + start)[:, None] + column, 0)

        def gather(flat):
            return None if flat is None else np.where(valid, flat[index], 0).astype(np.int32)

        return Events(gather(self.ids), gather(self.times), gather(self.types)), valid

    def next_time(self, user: np.ndarray, end: np.ndarray) -> np.ndarray | None:
        """The time of event `end` of each user, or of the last event where the history ends there.

        Returns int32 of the shape of `end` (int [B] or [B, n]), None where the events have no times.
        """
        if self.times is None:
            return None
        first, stop = self.offsets[user], self.offsets[user + 1]
        if end.ndim == 2:
            first, stop = first[:, None], stop[:, None]
        return self.times[np.minimum(first + end, stop - 1)].astype(np.int32)


class Targets(NamedTuple):
    """Attributes: user int64 [T] (index into Histories.users); position int64 [T] (n >= 1)."""

    user: np.ndarray
    position: np.ndarray


class Rows(NamedTuple):
    """Rows to read, and where each target finds its output.

    Attributes:
      user: int64 [R], index into Histories.users.
      updates, first_segment, start: int64 [R], as in `ReadPlan`.
      end: int64 [R]; raw events [start, end) are read.
      target_row: int64 [T]; target_column: int64 [T], the window position whose output predicts it.
    """

    user: np.ndarray
    updates: np.ndarray
    first_segment: np.ndarray
    start: np.ndarray
    end: np.ndarray
    target_row: np.ndarray
    target_column: np.ndarray


def select_users(lengths: np.ndarray, rule, split: str, max_users: int, seed: int):
    """Users with targets of `split` under a bound rule, or a fixed pseudo-random subset of them.

    Returns:
      (int64 indices in ascending order, how many users were skipped for having no targets).

    Raises:
      UserError: no user is left.
    """
    lengths = np.asarray(lengths)
    users = np.flatnonzero(rule.eligible(lengths, split))
    skipped = len(lengths) - len(users)
    if not len(users):
        raise UserError(
            f"None of the {len(lengths)} users has {rule.needs(split)}; use another protocol or "
            "prepare data with longer histories."
        )
    if max_users and max_users < len(users):
        users = np.sort(np.random.default_rng(seed).permutation(users)[:max_users])
    return users, skipped


def load_histories(dataset, users: np.ndarray) -> Histories:
    """Reads the sequences of `users` (dataset indices) into memory: 4 to 12 bytes per event."""
    sequences = [dataset.sequence(int(user)) for user in users]
    offsets = np.concatenate([[0], np.cumsum([len(s.ids) for s in sequences])]).astype(np.int64)

    def join(arrays):
        return None if arrays[0] is None else np.concatenate(arrays).astype(np.int32)

    return Histories(
        np.asarray(users, np.int64),
        offsets,
        join([s.ids for s in sequences]),
        join([s.times for s in sequences]),
        join([s.types for s in sequences]),
    )


def make_targets(histories: Histories, rule, split: str) -> Targets:
    """All targets of `split` under the split rule, ordered by user and position.

    Raises:
      ValueError: a target without any event before it. Such a user gets the popularity ranking
        (`methods.heuristics`), not a model's; no protocol here produces one.
    """
    lengths = np.diff(histories.offsets)
    positions = [
        np.asarray(rule.targets(int(n), split, int(user)))
        for user, n in zip(histories.users, lengths, strict=True)
    ]
    counts = [len(p) for p in positions]
    targets = Targets(
        np.repeat(np.arange(len(positions)), counts), np.concatenate(positions).astype(np.int64)
    )
    if (targets.position < 1).any():
        raise ValueError("A target at position 0 has no history to be predicted from.")
    return targets


def plan_rows(targets: Targets, method, max_segments: int) -> Rows:
    """Groups targets into rows: those of one user with equal `ReadPlan`s read one window."""
    plan = method.plan(targets.position, max_segments)
    key = np.stack([targets.user, plan.updates, plan.first_segment, plan.start], axis=1)
    rows, target_row = np.unique(key.astype(np.int64), axis=0, return_inverse=True)
    target_row = target_row.reshape(-1)
    end = np.zeros(len(rows), np.int64)
    np.maximum.at(end, target_row, targets.position)
    user, updates, first_segment, start = rows.T
    column = targets.position - 1 - start[target_row]
    return Rows(user, updates, first_segment, start, end, target_row, column)


def memory_rows(user, first_segment, updates, segment: int) -> Rows:
    """Rows that only ask for a memory: `updates` segments folded, nothing read; int64 [R] each."""
    start = (first_segment + updates) * segment
    nothing = np.empty(0, np.int64)
    return Rows(user, updates, first_segment, start, start, nothing, nothing)
