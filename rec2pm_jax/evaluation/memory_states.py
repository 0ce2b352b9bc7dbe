"""Compute the memory that each row is read with: folded by segments, or compressed in one pass.

Compiled functions take the method as a static argument, so repeated evaluations of one method
object (early stopping) compile once. Work is cut so that few shapes occur: folding always runs
chunks of `_CHUNK` segments over a fixed number of users.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.evaluation.batching import padded_batches, round_up_count
from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.targets import Rows
from rec2pm_jax.methods.codec import rounded
from rec2pm_jax.methods.method import Method
from rec2pm_jax.typing import Array, Events, Params, State

_CHUNK = 4  # segments per call of the compiled scan
_ONE_TIME_CELLS = 1 << 24  # attention cells (users x length^2) of a one-time batch


def compute_memories(
    method: Method,
    params: Params,
    histories: Histories,
    rows: Rows,
    memory: str,
    batch_size: int,
    memory_format: str = "float32",
) -> State:
    """Return the memory states of all rows.

    Args:
      method: the method to evaluate.
      params: its parameters.
      histories: the events to fold.
      rows: which events each memory has folded.
      memory: "one_time" to compress in one pass; any other kind folds segment by segment.
      batch_size: largest number of users per compiled call.
      memory_format: format that memory is kept in between updates, see `methods.codec`.

    Returns:
      State with numpy leaves [R, ...].
    """
    compute = compress_memories if memory == "one_time" else fold_memories
    return compute(
        method, params, histories, rows, batch_size=batch_size, memory_format=memory_format
    )


def fold_memories(
    method: Method,
    params: Params,
    histories: Histories,
    rows: Rows,
    *,
    batch_size: int,
    memory_format: str = "float32",
) -> State:
    """Fold the archived segments of each row in order, as streaming does.

    Arguments as in `compute_memories`.

    Returns:
      State with numpy leaves [R, ...]; row r has taken `rows.updates[r]` updates.
    """
    result = _initial_states(method, params, len(rows.user))
    chains = _plan_chains(rows)
    order = np.argsort(chains.updates, kind="stable")
    order = order[chains.updates[order] > 0]
    size = min(batch_size, max(1, len(order)))
    segment = method.config.data.segment
    for batch in padded_batches(order, size):
        updates = np.where(batch < 0, 0, chains.updates[batch])
        user, first_segment = chains.user[batch], chains.first_segment[batch]
        row = np.where(batch[:, None] < 0, -1, chains.rows[batch])
        wanted = np.where(row < 0, 0, rows.updates[row]).astype(np.int32)
        kept = _init_state(method, params, wanted.size)
        kept = jax.tree.map(lambda x, shape=wanted.shape: x.reshape(shape + x.shape[1:]), kept)
        fold = _Fold(_init_state(method, params, size), kept, wanted, np.int32(0))
        for done in range(0, int(updates.max()), _CHUNK):
            length = np.clip(updates - done, 0, _CHUNK) * segment
            start = (first_segment + done) * segment
            events, valid = histories.window(user, start, length, _CHUNK * segment)
            ends = start[:, None] + segment * np.arange(1, _CHUNK + 1)
            chunk = _Chunk(events, valid, histories.next_time(user, ends))
            fold = _fold_chunk(method, memory_format, params, fold, chunk)
        _scatter(result, row[wanted > 0], fold.kept, wanted > 0)
    return result


def compress_memories(
    method: Method,
    params: Params,
    histories: Histories,
    rows: Rows,
    *,
    batch_size: int,
    memory_format: str = "float32",
) -> State:
    """Compress the archived events of each row in one reference pass of the same weights.

    Arguments as in `compute_memories`.

    Returns:
      State with numpy leaves [R, ...]; rows without archived events keep the initial state.
    """
    result = _initial_states(method, params, len(rows.user))
    segment = method.config.data.segment
    widths = np.array([round_up_count(n) if n else 0 for n in rows.updates.tolist()]) * segment
    for width in np.unique(widths[widths > 0]):
        size = int(np.clip(_ONE_TIME_CELLS // width**2, 1, batch_size))
        for batch in padded_batches(np.flatnonzero(widths == width), size):
            real = batch >= 0
            length = np.where(real, rows.updates[batch], 0) * segment
            user, start = rows.user[batch], rows.first_segment[batch] * segment
            events, valid = histories.window(user, start, length, int(width))
            next_time = histories.next_time(user, start + length)
            states = _compress(method, memory_format, params, events, valid, next_time)
            _scatter(result, batch[real], states, real)
    return result


def choose_swap_donors(rows: Rows) -> np.ndarray | None:
    """Choose, for each row, the row of another user whose memory it gets in the swap test.

    Rows with memory are sorted by number of updates and rolled, so that a donor's history is of
    similar length. Rows without memory keep their state.

    Returns:
      int64 [R], or None when fewer than two users have memory.
    """
    with_memory = np.flatnonzero(rows.updates > 0)
    if len(np.unique(rows.user[with_memory])) < 2:
        return None
    order = with_memory[np.lexsort((rows.user[with_memory], rows.updates[with_memory]))]
    place = np.arange(len(order))
    shift = place + 1
    while True:  # a user's rows may be neighbours: move on until every donor is another user
        donor = order[shift % len(order)]
        same = rows.user[donor] == rows.user[order]
        if not same.any():
            break
        shift += same
    donors = np.arange(len(rows.user))
    donors[order] = donor
    return donors


def swap_parts(states: State, donors: np.ndarray) -> dict[str, State]:
    """Return states of which another user gave the whole, or one part alone.

    Args:
      states: numpy leaves [R, ...].
      donors: int64 [R], see `choose_swap_donors`.

    Returns:
      "all" -> states whose memory and exact memory are the donors'. Where a state has both, "memory"
      and "exact" -> states in which only that part is.
    """
    given = take_states(states, donors)
    swapped = {"all": given}
    if states.memory.size and states.exact.items.size:
        swapped["memory"] = given._replace(exact=states.exact)
        swapped["exact"] = states._replace(exact=given.exact)
    return swapped


def take_states(states: State, index: np.ndarray) -> State:
    """Return the states of the given rows; index -1 marks a padding row and takes any state."""
    return jax.tree.map(lambda x: x[index], states)


class _Chains(NamedTuple):
    """Runs of memory updates. Rows of a user that start at one segment share a chain.

    Attributes:
      user: int64 [N]. first_segment: int64 [N].
      updates: int64 [N], the most updates that any row of the chain needs.
      rows: int64 [N, W], the rows of each chain, padded with -1.
    """

    user: np.ndarray
    first_segment: np.ndarray
    updates: np.ndarray
    rows: np.ndarray


def _plan_chains(rows: Rows) -> _Chains:
    """Group the rows into chains."""
    key = np.stack([rows.user, rows.first_segment], axis=1)
    chains, chain = np.unique(key, axis=0, return_inverse=True)
    chain = chain.reshape(-1)
    updates = np.zeros(len(chains), np.int64)
    np.maximum.at(updates, chain, rows.updates)

    by_chain = np.argsort(chain, kind="stable")
    counts = np.bincount(chain, minlength=len(chains))
    first = np.cumsum(counts) - counts
    column = np.empty(len(chain), np.int64)
    column[by_chain] = np.arange(len(chain)) - np.repeat(first, counts)
    row_at = np.full((len(chains), counts.max()), -1)
    row_at[chain, column] = np.arange(len(chain))
    user, first_segment = chains.T
    return _Chains(user, first_segment, updates, row_at)


class _Chunk(NamedTuple):
    """A few consecutive segments of a batch of users.

    Attributes:
      events: fields int32 [B, n * S].
      valid: bool [B, n * S].
      next_times: int32 [B, n], the time of the event after each segment, or None.
    """

    events: Events
    valid: Array | np.ndarray
    next_times: Array | np.ndarray | None


class _Fold(NamedTuple):
    """A scan over segments that keeps a copy of the state for every row of a chain.

    Attributes:
      state: State [B, ...] after `done` updates.
      kept: State [B, W, ...], the copies.
      wanted: int32 [B, W], the number of updates after which each copy is taken.
      done: int32 scalar, updates so far.
    """

    state: State
    kept: State
    wanted: Array | np.ndarray
    done: Array | np.int32


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fold_chunk(
    method: Method, memory_format: str, params: Params, fold: _Fold, chunk: _Chunk
) -> _Fold:
    """Scan `method.update` over a chunk.

    Memory is rounded to `memory_format` after every update, so its error enters the next update.
    """
    segment = method.config.data.segment

    def by_segment(x: Array) -> Array:  # B n*S -> n B S
        return jnp.swapaxes(x.reshape(x.shape[0], -1, segment), 0, 1)

    def body(fold: _Fold, inputs: Any) -> tuple[_Fold, None]:
        (events, valid), next_time = inputs
        state = method.update(params, fold.state, events, valid, next_time)
        state = _round_memory(state, memory_format)
        done = fold.done + 1
        hit = fold.wanted == done

        def keep(old: Array, new: Array) -> Array:
            return jnp.where(hit.reshape(hit.shape + (1,) * (new.ndim - 1)), new[:, None], old)

        return _Fold(state, jax.tree.map(keep, fold.kept, state), fold.wanted, done), None

    segments = jax.tree.map(by_segment, (chunk.events, chunk.valid))
    next_times = None if chunk.next_times is None else chunk.next_times.T
    return jax.lax.scan(body, fold, (segments, next_times))[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compress(
    method: Method,
    memory_format: str,
    params: Params,
    events: Events,
    valid: Array,
    next_time: Array | None,
) -> State:
    return _round_memory(method.compress(params, events, valid, next_time), memory_format)


def _round_memory(state: State, memory_format: str) -> State:
    """Return the state with its memory as a store gives it back, see `methods.codec`."""
    if memory_format == "float32":
        return state
    memory = rounded(state.memory.astype(jnp.float32), memory_format)
    return state._replace(memory=memory.astype(state.memory.dtype))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init_state(method: Method, params: Params, batch_size: int) -> State:
    return method.init_state(params, batch_size)


def _initial_states(method: Method, params: Params, count: int) -> State:
    """Return `count` copies of a new user's state, as writable numpy arrays."""
    one = _init_state(method, params, 1)
    return jax.tree.map(lambda x: np.repeat(np.asarray(x), count, axis=0), one)


def _scatter(result: State, index: np.ndarray, states: State, chosen: np.ndarray) -> None:
    """Write the chosen states to the rows `index` of `result`."""
    for out, new in zip(jax.tree.leaves(result), jax.tree.leaves(states), strict=True):
        out[index] = np.asarray(new)[chosen]
