"""Plan an evaluation: which events are predicted, and which windows are read to predict them.

- A *target* is one event (user, n), predicted from the n events before it. Where a protocol predicts
  sets of items, all targets of a user are predicted from the same events, see `SplitRule.state_end`.
- A *row* is one window of raw events that is read once, with one memory. Reads are causal, so all
  targets of a user with equal `ReadPlan`s share a row.

Everything here is integer arithmetic on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rec2pm_jax.data.splits import SplitRule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.histories import EvaluationData, Histories, load_histories
from rec2pm_jax.evaluation.processes import share_users
from rec2pm_jax.methods.method import Method


class Targets(NamedTuple):
    """The events to predict, ordered by user and position.

    Attributes:
      user: int64 [T], indices into `Histories.users`.
      position: int64 [T], the number n >= 1 of events that each target is predicted from.
      event: int64 [T], the position of each target's event in its history: n, unless the protocol
        predicts sets.
    """

    user: np.ndarray
    position: np.ndarray
    event: np.ndarray


class Rows(NamedTuple):
    """The windows to read, and where each target finds its output.

    Attributes:
      user: int64 [R], indices into `Histories.users`.
      updates: int64 [R], number of memory updates, as in `ReadPlan`.
      first_segment: int64 [R], first folded segment, as in `ReadPlan`.
      start: int64 [R], first raw event.
      end: int64 [R], end of the raw events [start, end).
      target_row: int64 [T], the row that predicts each target.
      target_column: int64 [T], the column of that row whose output predicts the target.
    """

    user: np.ndarray
    updates: np.ndarray
    first_segment: np.ndarray
    start: np.ndarray
    end: np.ndarray
    target_row: np.ndarray
    target_column: np.ndarray


class Selection(NamedTuple):
    """The users of an evaluation, their histories and their targets.

    Attributes:
      users: int64 [U], indices in the dataset, ascending.
      skipped: number of users of the dataset without targets.
      histories: the sequences of `users`.
      targets: all their targets.
    """

    users: np.ndarray
    skipped: int
    histories: Histories
    targets: Targets


def select_targets(
    dataset: EvaluationData,
    rule: SplitRule,
    split: str,
    max_users: int | None = None,
    seed: int = 0,
    shared: bool = False,
) -> Selection:
    """Choose users and load their histories and targets.

    Args:
      dataset: a prepared dataset.
      rule: a split rule bound to the dataset.
      split: "validation" or "test".
      max_users: see `select_users`.
      seed: see `select_users`.
      shared: whether each process of the job takes a share of the users.

    Returns:
      The selection.

    Raises:
      UserError: no user has targets, or there are fewer users than processes that share them.
    """
    users, skipped = select_users(dataset.lengths, rule, split, max_users, seed)
    users = share_users(users) if shared else users
    histories = load_histories(dataset, users)
    return Selection(users, skipped, histories, make_targets(histories, rule, split))


def select_users(
    lengths: np.ndarray, rule: SplitRule, split: str, max_users: int | None, seed: int
) -> tuple[np.ndarray, int]:
    """Choose the users that have targets, or a fixed pseudo-random subset of them.

    Args:
      lengths: int [num_users], events of each user of the dataset.
      rule: a split rule bound to the dataset.
      split: "validation" or "test".
      max_users: size of the subset; None for all users.
      seed: chooses the subset.

    Returns:
      Indices in the dataset, int64, ascending; and the number of users without targets.

    Raises:
      UserError: no user has targets.
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


def make_targets(histories: Histories, rule: SplitRule, split: str) -> Targets:
    """Return all targets of `split` under a split rule.

    Where the rule predicts sets, an item that occurs twice in a user's set is one target.

    Raises:
      ValueError: a target has no event before it. No protocol here produces one: such a user gets
        the popularity ranking, not a model's.
    """
    lengths = np.diff(histories.offsets)
    positions = [
        np.asarray(rule.targets(int(n), split, int(user)))
        for user, n in zip(histories.users, lengths, strict=True)
    ]
    if rule.predicts_sets:
        starts = zip(positions, histories.offsets, strict=False)
        positions = [p[_first_occurrences(histories.ids[start + p])] for p, start in starts]
    user = np.repeat(np.arange(len(positions)), [len(p) for p in positions])
    event = np.concatenate(positions).astype(np.int64)
    position = event
    if rule.predicts_sets:
        ends = [rule.state_end(split, int(u)) for u in histories.users]
        position = np.array(ends, np.int64)[user]
    targets = Targets(user, position, event)
    if (targets.position < 1).any():
        raise ValueError("A target at position 0 has no history to be predicted from.")
    return targets


def target_items(histories: Histories, targets: Targets) -> np.ndarray:
    """Return the item id of each target: int32 [T]."""
    return histories.ids[histories.offsets[targets.user] + targets.event]


def distinct_reads(targets: Targets) -> np.ndarray:
    """Return the first target of each (user, position): int64 [L], ascending.

    Targets of one user and position share a ranked list.
    """
    reads = np.stack([targets.user, targets.position], axis=1)
    return np.sort(np.unique(reads, axis=0, return_index=True)[1])


def _first_occurrences(ids: np.ndarray) -> np.ndarray:
    """Return the index of the first event of each distinct item, ascending."""
    return np.sort(np.unique(ids, return_index=True)[1])


def plan_rows(
    targets: Targets, method: Method, max_segments: int | None, shared: bool = True
) -> Rows:
    """Group the targets into rows: targets of one user with equal `ReadPlan`s read one window.

    Args:
      targets: the events to predict.
      method: decides what is folded and what is read.
      max_segments: how many of the newest archived segments the memory folds; None for all.
      shared: whether targets share rows. Without, each target has a row that ends before it.

    Returns:
      The rows, ordered by user.
    """
    plan = method.plan(targets.position, max_segments or 0)
    key = np.stack([targets.user, plan.updates, plan.first_segment, plan.start], axis=1)
    if not shared:
        key = np.concatenate([key, targets.position[:, None]], axis=1)
    rows, target_row = np.unique(key.astype(np.int64), axis=0, return_inverse=True)
    target_row = target_row.reshape(-1)
    end = np.zeros(len(rows), np.int64)
    np.maximum.at(end, target_row, targets.position)
    user, updates, first_segment, start = rows.T[:4]
    column = targets.position - 1 - start[target_row]
    return Rows(user, updates, first_segment, start, end, target_row, column)


def memory_rows(
    user: np.ndarray, first_segment: np.ndarray, updates: np.ndarray, segment: int
) -> Rows:
    """Return rows that only fold a memory and read nothing.

    Args:
      user: int64 [R], indices into `Histories.users`.
      first_segment: int64 [R], first folded segment.
      updates: int64 [R], number of folded segments.
      segment: S, events per segment.
    """
    start = (first_segment + updates) * segment
    nothing = np.empty(0, np.int64)
    return Rows(user, updates, first_segment, start, start, nothing, nothing)


def final_rows(rows: Rows) -> np.ndarray:
    """Return the index of the last row of each user that has memory: int64 [users with memory]."""
    order = np.lexsort((rows.end, rows.user))
    last = order[np.append(np.diff(rows.user[order]) > 0, True)]
    return last[rows.updates[last] > 0]
