"""The memory each row is read with: folded segment by segment, or compressed in one pass.

Compiled functions take the method as a static argument, so repeated evaluations of one method
object (early stopping) compile once. Work is cut so that few shapes occur: folding always runs
chunks of `_CHUNK` segments over a fixed number of users.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.evaluate.targets import Histories, Rows
from rec2pm_jax.methods.codec import rounded
from rec2pm_jax.typing import State

_CHUNK = 4  # segments per call of the compiled scan
_ONE_TIME_CELLS = 1 << 24  # attention cells (users x length^2) of a one-time batch


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fold(method, stored, params, state, kept, wanted, folded, events, valid, next_times):
    """Scans `method.update` over a chunk; copies the state into `kept` [B, W, ...] where wanted.

    stored: the format that memory is kept in between updates: its error enters the next update.
    wanted: int32 [B, W], number of updates after which each of a chain's rows wants the state.
    folded: int32 scalar, updates before this chunk. events: fields [B, chunk * S]. next_times: int32
    [B, chunk], the time of the event after each segment, or None.
    """
    segment = method.config.data.segment

    def by_segment(x):  # B chunk*S -> chunk B S
        return jnp.swapaxes(x.reshape(x.shape[0], -1, segment), 0, 1)

    def body(carry, inputs):
        state, kept, folded = carry
        (events, valid), next_time = inputs
        state = method.update(params, state, events, valid, next_time)
        state = _as_stored(state, stored)
        folded = folded + 1
        hit = wanted == folded

        def keep(old, new):
            return jnp.where(hit.reshape(hit.shape + (1,) * (new.ndim - 1)), new[:, None], old)

        return (state, jax.tree.map(keep, kept, state), folded), None

    segments = jax.tree.map(by_segment, (events, valid))
    by_turn = None if next_times is None else next_times.T
    (state, kept, _), _ = jax.lax.scan(body, (state, kept, folded), (segments, by_turn))
    return state, kept


def _as_stored(state: State, stored: str) -> State:
    """The state as a store gives it back, see `codec`."""
    if stored == "float32":
        return state
    memory = rounded(state.memory.astype(jnp.float32), stored)
    return state._replace(memory=memory.astype(state.memory.dtype))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compress(method, stored, params, events, valid, next_time):
    return _as_stored(method.compress(params, events, valid, next_time), stored)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init_state(method, params, batch_size):
    return method.init_state(params, batch_size)


def _initial(method, params, count: int) -> State:
    """`count` copies of a fresh user's state, as writable numpy arrays."""
    one = _init_state(method, params, 1)
    return jax.tree.map(lambda x: np.repeat(np.asarray(x), count, axis=0), one)


def _reshape_leading(state: State, shape: tuple[int, int]) -> State:
    return jax.tree.map(lambda x: x.reshape(shape + x.shape[1:]), state)


def batches(order: np.ndarray, size: int):
    """Cuts `order` into pieces of `size`; the last is filled up with -1."""
    for begin in range(0, len(order), size):
        piece = order[begin : begin + size]
        yield np.pad(piece, (0, size - len(piece)), constant_values=-1)


def bucket(n: int) -> int:
    """Smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least `n`."""
    power = 1 << max(0, int(n - 1).bit_length())
    return 3 * power // 4 if power >= 4 and 3 * power // 4 >= n else power


def iterated_memories(
    method, params, histories: Histories, rows: Rows, *, batch_size: int, stored: str = "float32"
) -> State:
    """Folds each row's archived segments in order, as streaming does.

    Args:
      stored: the format a memory is kept in between updates, see `codec`.

    Returns:
      State with numpy leaves [R, ...]; row r has taken `rows.updates[r]` updates.
    """
    result = _initial(method, params, len(rows.user))
    key = np.stack([rows.user, rows.first_segment], axis=1)
    chains, chain = np.unique(key, axis=0, return_inverse=True)
    chain = chain.reshape(-1)
    updates = np.zeros(len(chains), np.int64)
    np.maximum.at(updates, chain, rows.updates)

    # Column of each row within its chain: `by_chain` lists rows chain by chain.
    by_chain = np.argsort(chain, kind="stable")
    counts = np.bincount(chain, minlength=len(chains))
    first = np.cumsum(counts) - counts
    column = np.empty(len(chain), np.int64)
    column[by_chain] = np.arange(len(chain)) - np.repeat(first, counts)
    row_at = np.full((len(chains), counts.max()), -1)
    row_at[chain, column] = np.arange(len(chain))

    order = np.argsort(updates, kind="stable")
    order = order[updates[order] > 0]
    size = min(batch_size, max(1, len(order)))
    segment = method.config.data.segment
    for batch in batches(order, size):
        todo = np.where(batch < 0, 0, updates[batch])
        user, first_segment = chains[batch].T
        row = np.where(batch[:, None] < 0, -1, row_at[batch])
        wanted = np.where(row < 0, 0, rows.updates[row]).astype(np.int32)
        state = _init_state(method, params, size)
        kept = _reshape_leading(_init_state(method, params, wanted.size), wanted.shape)  # B W ...
        for folded in range(0, int(todo.max()), _CHUNK):
            length = np.clip(todo - folded, 0, _CHUNK) * segment
            start = (first_segment + folded) * segment
            events, valid = histories.window(user, start, length, _CHUNK * segment)
            ends = start[:, None] + segment * np.arange(1, _CHUNK + 1)
            next_times = histories.next_time(user, ends)
            turn = (wanted, np.int32(folded), events, valid, next_times)
            state, kept = _fold(method, stored, params, state, kept, *turn)
        used = wanted > 0
        for out, new in zip(jax.tree.leaves(result), jax.tree.leaves(kept), strict=True):
            out[row[used]] = np.asarray(new)[used]
    return result


def one_time_memories(
    method, params, histories: Histories, rows: Rows, *, batch_size: int, stored: str = "float32"
) -> State:
    """Compresses each row's archived events in one reference-style pass of the same weights.

    Returns:
      State with numpy leaves [R, ...]; rows without archived events keep the initial state.
    """
    result = _initial(method, params, len(rows.user))
    segment = method.config.data.segment
    widths = np.array([bucket(n) if n else 0 for n in rows.updates.tolist()]) * segment
    for width in np.unique(widths[widths > 0]):
        size = int(np.clip(_ONE_TIME_CELLS // width**2, 1, batch_size))
        for batch in batches(np.flatnonzero(widths == width), size):
            real = batch >= 0
            length = np.where(real, rows.updates[batch], 0) * segment
            user, start = rows.user[batch], rows.first_segment[batch] * segment
            events, valid = histories.window(user, start, length, int(width))
            next_time = histories.next_time(user, start + length)
            state = _compress(method, stored, params, events, valid, next_time)
            for out, new in zip(jax.tree.leaves(result), jax.tree.leaves(state), strict=True):
                out[batch[real]] = np.asarray(new)[real]
    return result


def swap_donors(rows: Rows) -> np.ndarray | None:
    """For each row the row of another user whose memory it gets in the swap test.

    Rows with memory are sorted by number of updates and rolled, so that a donor's history is of
    similar length; rows without memory keep their own state.

    Returns:
      int64 [R], or None when fewer than two users have memory.
    """
    with_memory = np.flatnonzero(rows.updates > 0)
    if len(np.unique(rows.user[with_memory])) < 2:
        return None
    order = with_memory[np.lexsort((rows.user[with_memory], rows.updates[with_memory]))]
    place = np.arange(len(order))
    shift = place + 1
    while True:  # a user's own rows may be neighbours: step on until the donor is someone else
        donor = order[shift % len(order)]
        same = rows.user[donor] == rows.user[order]
        if not same.any():
            break
        shift += same
    donors = np.arange(len(rows.user))
    donors[order] = donor
    return donors


def take(states: State, index: np.ndarray) -> State:
    """States of the given rows; the index -1 (a padding row of a batch) takes any."""
    return jax.tree.map(lambda x: x[index], states)
