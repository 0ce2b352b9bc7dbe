"""Updates and reads of many users in a few fixed shapes: nothing is compiled in steady state.

Batches are padded to a power of two of at most 64 rows by repeating a row. Rows do not depend on
each other, so the repeated ones are computed and thrown away.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.method import Method
from rec2pm_jax.stream.user import UserState, join, step_plan
from rec2pm_jax.typing import Events, Params, State

MAX_BATCH = 64
_LEAST = 16


@functools.partial(jax.jit, static_argnums=0)
def update(method, params, state, events, valid, next_time):
    """The scan body of evaluation, one segment per user: see `Method.update`."""
    return method.update(params, state, events, valid, next_time)


@functools.partial(jax.jit, static_argnums=(0, 1))
def top(method, k, params, catalogue, state, events, valid, request_time):
    """Scores float32 [B, k] and ids int32 [B, k] of the best items, best first."""
    vectors = method.read(params, state, events, valid, request_time)
    return method.best(params, vectors, k, catalogue)


@functools.partial(jax.jit, static_argnums=0)
def prepared(method, params):
    """The item table as `top` takes it: made once, not in every read."""
    return method.catalogue(params)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n` >= 1."""
    return 1 << (n - 1).bit_length()


def padded_k(k: int, items: int) -> int:
    """How many items a stream reads for `k` wanted ones: few sizes, and one for all small `k`."""
    return min(max(power_of_two(k), _LEAST), items)


def padded_rows(rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts `rows` into batches: (indices padded by repeating the first, how many are real)."""
    for begin in range(0, len(rows), MAX_BATCH):
        piece = rows[begin : begin + MAX_BATCH]
        padding = np.repeat(piece[:1], power_of_two(len(piece)) - len(piece))
        yield np.concatenate([piece, padding]), len(piece)


def stack(events: Sequence[Events], width: int) -> tuple[Events, np.ndarray]:
    """Pads users' events [n_b] on the right: (fields int32 [B, width], valid bool [B, width])."""
    valid = np.arange(width) < np.array([len(e.ids) for e in events])[:, None]

    def fill(*rows):
        out = np.zeros(valid.shape, np.int32)
        out[valid] = np.concatenate(rows)
        return out

    return jax.tree.map(fill, *events), valid


def fold(
    method: Method,
    params: Params,
    states: State,
    segment: Events,
    next_time: np.ndarray | None,
) -> State:
    """Folds one whole segment of each user, in batches of at most `MAX_BATCH`.

    Args:
      states: numpy, U rows.
      segment: fields int32 [U, S].
      next_time: int32 [U], see `Method.update`; None for events without times.

    Returns:
      The new states, numpy, U rows.
    """
    new = jax.tree.map(np.empty_like, states)
    for index, real in padded_rows(np.arange(len(states.groups))):
        old, events = jax.tree.map(lambda x, i=index: x[i], (states, segment))
        times = None if next_time is None else next_time[index]
        folded = update(method, params, old, events, np.ones(events.ids.shape, bool), times)
        for out, leaf in zip(jax.tree.leaves(new), jax.tree.leaves(folded), strict=True):
            out[index[:real]] = np.asarray(leaf)[:real]
    return new


def observe(
    method: Method,
    params: Params,
    users: Sequence[UserState],
    events: Sequence[Events],
    last_times: Sequence[int | None],
) -> tuple[list[UserState], int]:
    """Appends each user's events [n_u] and folds every segment that is due.

    Returns:
      The new states, and how many updates were folded.
    """
    before = np.array([user.events for user in users], np.int64)
    after = before + [len(e.ids) for e in events]
    step = step_plan(method, before, after)
    pending = [join(user.pending, new) for user, new in zip(users, events, strict=True)]
    states = jax.tree.map(lambda *rows: np.stack(rows), *[user.state for user in users])

    size = method.config.data.segment
    for turn in range(int(step.updates.max())):  # each turn folds one segment of every user due
        rows = np.flatnonzero(step.updates > turn)
        end = (turn + 1) * size
        segment = jax.tree.map(
            lambda *x, s=slice(turn * size, end): np.stack([fields[s] for fields in x]),
            *[pending[i] for i in rows],
        )
        next_time = None
        if segment.times is not None:  # R >= 1: a segment is folded after its successor came
            next_time = np.array([pending[i].times[end] for i in rows], np.int32)
        old = jax.tree.map(lambda x, i=rows: x[i], states)
        new = fold(method, params, old, segment, next_time)
        for out, leaf in zip(jax.tree.leaves(states), jax.tree.leaves(new), strict=True):
            out[rows] = leaf

    result = []
    for i, last_time in enumerate(last_times):
        state = jax.tree.map(lambda x, i=i: x[i].copy(), states)
        kept = jax.tree.map(lambda x, d=step.drop[i]: x[d:].copy(), pending[i])
        result.append(UserState(state, kept, int(after[i]), last_time))
    return result, int(step.updates.sum())


def best_items(
    method: Method,
    params: Params,
    catalogue: jax.Array,
    users: Sequence[UserState],
    request_times: np.ndarray | None,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The best items of users who have events.

    Args:
      catalogue: what `prepared` returns.
      request_times: int32 [U] seconds since the time origin; None for a model without time bias.
      k: items wanted, 1 <= k <= num_items.

    Returns:
      (scores float32 [U, at least k], ids int32 of the same shape), best first.

    Raises:
      UserError: some scores are NaN or infinite.
    """
    wanted = min(power_of_two(k), method.num_items)
    scores = np.empty((len(users), wanted), np.float32)
    ids = np.empty((len(users), wanted), np.int32)
    for index, real in padded_rows(np.arange(len(users))):
        batch = [users[i] for i in index]
        state = State(*(np.stack(rows) for rows in zip(*(u.state for u in batch), strict=True)))
        events, valid = stack([u.pending for u in batch], method.read_length)
        times = None if request_times is None else request_times[index]
        values, items = top(method, wanted, params, catalogue, state, events, valid, times)
        scores[index[:real]] = np.asarray(values)[:real]
        ids[index[:real]] = np.asarray(items)[:real]
    check_finite(scores)
    return scores, ids


def check_finite(scores: np.ndarray) -> None:
    """Raises: UserError where scores are NaN or infinite."""
    if not np.isfinite(scores).all():
        raise UserError(
            "Some scores are NaN or infinite; the parameters have diverged (use another "
            "checkpoint, or train again with a lower learning rate)."
        )
