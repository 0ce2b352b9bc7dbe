"""Updates and reads of many users in a few fixed shapes, so that nothing is compiled while serving.

Batches are padded to a power of two of at most `MAX_BATCH` rows by repeating a row. Rows do not depend
on each other, so the results of the repeated rows are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.method import Method
from rec2pm_jax.stream.compute import compiled
from rec2pm_jax.stream.search import Asked
from rec2pm_jax.stream.users.user_state import UserState
from rec2pm_jax.typing import Array, Events, Params, State

# Users of a batch. Of 64, each cost a fifth more on a CPU: glibc returns arrays of 32 MB to the system.
MAX_BATCH = 32
_MIN_K = 16

ReadInputs = tuple[State, Events, np.ndarray]  # states, events and valid of `Method.read`

# --- padding ---


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n` >= 1.

    Example:
      >>> [next_power_of_two(n) for n in (1, 2, 3, 64, 65)]
      [1, 2, 4, 64, 128]
    """
    return 1 << (n - 1).bit_length()


def padded_k(k: int, num_items: int) -> int:
    """Return how many items a stream reads for a request of `k`: a few sizes, one for all small `k`.

    Example:
      >>> [padded_k(k, num_items=50) for k in (1, 10, 17, 40)]
      [16, 16, 32, 50]
    """
    return min(max(next_power_of_two(k), _MIN_K), num_items)


def iter_batches(rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Cut rows into batches.

    Args:
      rows: indices int [n].

    Yields:
      (indices, padded by repeating the first; how many of them are not padding).
    """
    for begin in range(0, len(rows), MAX_BATCH):
        batch = rows[begin : begin + MAX_BATCH]
        padding = np.repeat(batch[:1], next_power_of_two(len(batch)) - len(batch))
        yield np.concatenate([batch, padding]), len(batch)


def pad_events(events: Sequence[Events], width: int) -> tuple[Events, np.ndarray]:
    """Pad the events of several users on the right and stack them.

    Args:
      events: of each user, fields [n_b].
      width: n_b <= width.

    Returns:
      (numpy fields int32 [B, width], valid bool [B, width]).
    """
    valid = np.arange(width) < np.array([len(e.ids) for e in events])[:, None]

    def pad(*rows: np.ndarray) -> np.ndarray:
        out = np.zeros(valid.shape, np.int32)
        out[valid] = np.concatenate(rows)
        return out

    return jax.tree.map(pad, *events), valid


# --- many users ---


def update_memories(
    method: Method,
    params: Params,
    states: State,
    segment: Events,
    next_time: np.ndarray | None,
) -> State:
    """Update the memories of any number of users with one whole segment each.

    Args:
      states: numpy, U rows.
      segment: fields int32 [U, S].
      next_time: int32 [U], see `Method.update`; None for events without times.

    Returns:
      The new states, numpy, U rows.
    """
    new = jax.tree.map(np.empty_like, states)
    for index, real in iter_batches(np.arange(len(states.groups))):
        old, events = jax.tree.map(lambda x, i=index: x[i], (states, segment))
        times = None if next_time is None else next_time[index]
        valid = np.ones(events.ids.shape, bool)
        updated = compiled.run(method, compiled.update, method, params, old, events, valid, times)
        for out, leaf in zip(jax.tree.leaves(new), jax.tree.leaves(updated), strict=True):
            out[index[:real]] = np.asarray(leaf)[:real]
    return new


class UpdatePlan(NamedTuple):
    """What histories that grow need, elementwise over users.

    Attributes:
      updates: memory updates, with S events each from the front of the pending events.
      drop: events that leave the front of the pending events, used by updates or out of reach.
    """

    updates: np.ndarray
    drop: np.ndarray


def plan_updates(method: Method, before: np.ndarray, after: np.ndarray) -> UpdatePlan:
    """Return what happens when histories of `before` events grow to `after`; int [U] each.

    `Method.plan` alone decides, as in evaluation: n events need `plan(n).updates` updates, and the
    pending events start at `plan(n).start`.
    """
    old, new = method.plan(np.asarray(before)), method.plan(np.asarray(after))
    return UpdatePlan(new.updates - old.updates, new.start - old.start)


def append_events(
    method: Method,
    params: Params,
    users: Sequence[UserState],
    events: Sequence[Events],
    last_times: Sequence[int | None],
) -> tuple[list[UserState], int]:
    """Append events to users and update their memories with every segment that is full.

    Args:
      events: of each user, fields [n_u].
      last_times: the new `UserState.last_time` of each user.

    Returns:
      (the new states, how many memory updates were computed).
    """
    before = np.array([user.events for user in users], np.int64)
    after = before + [len(e.ids) for e in events]
    plan = plan_updates(method, before, after)
    pending = [_concatenate(user.pending, new) for user, new in zip(users, events, strict=True)]
    states = jax.tree.map(lambda *rows: np.stack(rows), *[user.state for user in users])

    size = method.config.data.segment
    for turn in range(int(plan.updates.max())):  # the next segment of every user that has one
        rows = np.flatnonzero(plan.updates > turn)
        begin, end = turn * size, (turn + 1) * size
        segment = jax.tree.map(
            lambda *fields, b=begin, e=end: np.stack([field[b:e] for field in fields]),
            *[pending[i] for i in rows],
        )
        next_time = None
        if segment.times is not None:  # R >= 1: an event follows each full segment
            next_time = np.array([pending[i].times[end] for i in rows], np.int32)  # type: ignore[index]
        old = jax.tree.map(lambda x, i=rows: x[i], states)
        new = update_memories(method, params, old, segment, next_time)
        for out, leaf in zip(jax.tree.leaves(states), jax.tree.leaves(new), strict=True):
            out[rows] = leaf

    result = []
    for i, last_time in enumerate(last_times):
        state = jax.tree.map(lambda x, i=i: x[i].copy(), states)
        kept = jax.tree.map(lambda x, d=plan.drop[i]: x[d:].copy(), pending[i])
        user = users[i]._replace(state=state, pending=kept, last_time=last_time)
        result.append(user._replace(events=int(after[i])))
    return result, int(plan.updates.sum())


def find_best(
    method: Method,
    params: Params,
    catalogue: Array,
    users: Sequence[UserState],
    asked: Asked,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best items of users who have events.

    Args:
      catalogue: the item table, see `compiled.prepare_catalogue`.
      asked: the request of each user, numpy.
      k: how many items are wanted, 1 <= k <= num_items.

    Returns:
      (scores float32 [U, at least k], ids int32 of the same shape), best first; with candidates as
      many as there are of them. -inf where the filter leaves fewer items.

    Raises:
      UserError: some scores are NaN or infinite.
    """
    width = asked.best_of(k, method.num_items)
    scores = np.empty((len(users), width), np.float32)
    ids = np.empty((len(users), width), np.int32)
    for rows, real, inputs in iter_reads(method, users):
        values, items = compiled.run(
            method, compiled.read_best, method, width, params, catalogue, *inputs, asked.take(rows)
        )
        scores[rows[:real]] = np.asarray(values)[:real]
        ids[rows[:real]] = np.asarray(items)[:real]
    check_finite(scores, filtered=asked.rule.leaves_out)
    return scores, ids


def iter_reads(
    method: Method, users: Sequence[UserState]
) -> Iterator[tuple[np.ndarray, int, ReadInputs]]:
    """Cut users who have events into batches for `Method.read`.

    Yields:
      (which users, int [B]; n, rows from n on are padding; states, events and valid of `Method.read`).
    """
    for index, real in iter_batches(np.arange(len(users))):
        batch = [users[i] for i in index]
        state = jax.tree.map(lambda *rows: np.stack(rows), *[user.state for user in batch])
        events, valid = pad_events([user.pending for user in batch], method.read_length)
        yield index, real, (state, events, valid)


def check_finite(scores: np.ndarray, *, filtered: bool = False) -> None:
    """Raise UserError if scores are NaN or infinite.

    Args:
      filtered: whether a filter may have left out items, which score -inf.
    """
    if not (np.isfinite(scores) | (filtered & (scores == -np.inf))).all():
        raise UserError(
            "Some scores are NaN or infinite; the parameters have diverged (use another "
            "checkpoint, or train again with a lower learning rate)."
        )


def _concatenate(first: Events, second: Events) -> Events:
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
