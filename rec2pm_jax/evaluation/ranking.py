"""Read rows with their memories, rank the catalogue and recommend, in a few fixed shapes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.evaluation.batching import padded_batches
from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.memory_states import take_states
from rec2pm_jax.evaluation.metrics import check_ranks, target_ranks
from rec2pm_jax.evaluation.targets import Rows, Targets, target_items
from rec2pm_jax.methods.method import Method
from rec2pm_jax.nn.catalogue.filters import is_denied
from rec2pm_jax.nn.catalogue.own_items import own_per_row
from rec2pm_jax.typing import Array, Events, OwnItems, Params, Readout, State

_READ_TOKENS = 1 << 15  # events of a read batch
_SCORES = 1 << 22  # logits of a ranking chunk


def read_targets(
    method: Method,
    params: Params,
    histories: Histories,
    rows: Rows,
    states: State,
    *,
    batch_size: int,
    request_time_known: bool = True,
    request_time: int | None = None,
) -> Readout:
    """Compute what predicts each target.

    Query times, for methods that read times, are the next event's times inside a window and the time
    of its last target for the last event, unless `request_time` is given.

    Args:
      method: the method to evaluate.
      params: its parameters.
      histories: the events to read.
      rows: the windows to read; R rows, T targets.
      states: State [R, ...], the memory of each row.
      batch_size: largest number of rows per compiled call.
      request_time_known: whether the last row knows its query time. If not, each row must have one
        target, see `targets.plan_rows`.
      request_time: the query time of all last events, in seconds since the time origin; None for
        the time of the target.

    Returns:
      The outputs of the method as numpy arrays, T rows.
    """
    lengths = rows.end - rows.start
    per_row = np.bincount(rows.target_row, minlength=len(lengths))
    by_row = np.argsort(rows.target_row, kind="stable")  # targets, row by row
    first = np.cumsum(per_row) - per_row
    places = np.arange(per_row.max())

    widths = _window_widths(int(lengths.max()))
    width_of = widths[np.searchsorted(widths, lengths)]
    result: Readout | None = None
    for width in np.unique(width_of):
        in_width = np.flatnonzero(width_of == width)
        size = int(np.clip(_READ_TOKENS // width, 1, batch_size))
        for batch in padded_batches(in_width, min(size, len(in_width))):
            real = batch >= 0
            used = (places < per_row[batch][:, None]) & real[:, None]
            target = np.where(used, by_row[np.where(used, first[batch][:, None] + places, 0)], -1)
            columns = np.where(used, rows.target_column[target], 0).astype(np.int32)
            # A padding row of the batch reads one real event, so that no row is empty.
            length = np.where(real, lengths[batch], 1)
            window = histories.window(rows.user[batch], rows.start[batch], length, int(width))
            times = None
            if request_time_known:
                times = _request_times(histories, rows, batch, request_time)
            state = take_states(states, batch)
            outputs = _read(method, params, state, *window, times, columns)
            if result is None:
                # A narrower window has fewer own items: the last columns of its targets stay 0.
                room = int(widths[-1]) - int(width)
                result = _empty_readout(outputs, len(by_row), room)
            for out, new in zip(jax.tree.leaves(result), jax.tree.leaves(outputs), strict=True):
                out[target[used], : new.shape[-1]] = np.asarray(new)[used]
    assert result is not None, "there are targets"
    return result


def rank_targets(
    method: Method,
    params: Params,
    histories: Histories,
    targets: Targets,
    readout: Readout,
    *,
    mask_seen: bool = False,
) -> np.ndarray:
    """Rank each target in the full catalogue; ties are pessimistic.

    Args:
      method: the method to evaluate.
      params: its parameters.
      histories: the events of the users.
      targets: the events to rank.
      readout: T rows, from `read_targets`.
      mask_seen: whether to leave out the items of the newest `method.read_length` events before
        the target.

    Returns:
      int64 [T], ranks from 1.

    Raises:
      UserError: some scores are NaN or infinite.
    """
    item = target_items(histories, targets)
    chunk = max(1, min(len(item), _SCORES // (method.num_items + 1)))
    ranks = np.zeros(len(item), np.int64)
    for batch in padded_batches(np.arange(len(item)), chunk):
        real = batch >= 0
        seen = seen_items(method, histories, targets, batch) if mask_seen else None
        part = jax.tree.map(lambda a, b=batch: a[b], readout)
        chunk_ranks = np.asarray(_rank(method, params, part, item[batch], seen))
        ranks[batch[real]] = chunk_ranks[real]
    return check_ranks(ranks)


def recommend(
    method: Method,
    params: Params,
    histories: Histories,
    targets: Targets,
    readout: Readout,
    k: int,
    *,
    mask_seen: bool = False,
) -> np.ndarray:
    """Return the best items for each target; of equal scores the lower id comes first.

    Args:
      method, params, histories, targets, readout, mask_seen: as for `rank_targets`.
      k: places of a list.

    Returns:
      int32 [T, k], best first; 0 in places that no item is left for.
    """
    count = len(targets.user)
    chunk = max(1, min(count, _SCORES // (method.num_items + 1)))
    lists = np.zeros((count, k), np.int32)
    places = min(k, method.num_items)
    for batch in padded_batches(np.arange(count), chunk):
        real = batch >= 0
        seen = seen_items(method, histories, targets, batch) if mask_seen else None
        part = jax.tree.map(lambda a, b=batch: a[b], readout)
        found = np.asarray(_best(method, params, part, seen, places))
        lists[batch[real], :places] = found[real]
    return lists


def seen_items(
    method: Method, histories: Histories, targets: Targets, batch: np.ndarray
) -> np.ndarray:
    """Return the ids of the newest events that each target is read from: int32 [B, N]."""
    length = np.minimum(targets.position[batch], method.read_length)
    start = targets.position[batch] - length
    window, _ = histories.window(targets.user[batch], start, length, method.read_length)
    return np.asarray(window.ids)


@functools.partial(jax.jit, static_argnums=0)
def _read(
    method: Method,
    params: Params,
    state: State,
    events: Events,
    valid: Array,
    request_time: Array | None,
    columns: Array,
) -> Readout:
    """Return the outputs at `columns` int32 [B, P] of windows [B, N]: fields [B, P, ...]."""
    vectors, own = method.read_all(params, state, events, valid, request_time)
    vectors = jnp.take_along_axis(vectors, columns[:, :, None], axis=1)
    if own is not None:
        addends = jnp.take_along_axis(own.addends, columns[:, :, None], axis=1)
        own = own_per_row(own._replace(addends=addends))
    return Readout(vectors, own)


@functools.partial(jax.jit, static_argnums=0)
def _rank(
    method: Method, params: Params, readout: Readout, targets: Array, seen: Array | None
) -> Array:
    """Rank targets int32 [B]; `seen` int32 [B, N] holds ids to leave out (0 for none), or is None."""
    scores = method.score(params, readout)
    excluded = None if seen is None else is_denied(seen, scores.shape[1])
    return target_ranks(scores, targets, excluded)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _best(method: Method, params: Params, readout: Readout, seen: Array | None, k: int) -> Array:
    """Return the k best items, int32 [B, k]: 0 in places for which only items of `seen` are left."""
    scores = method.score(params, readout)
    if seen is not None:
        scores = jnp.where(is_denied(seen, scores.shape[1]), -jnp.inf, scores)
    best, items = jax.lax.top_k(scores, k)
    return jnp.where(best > -jnp.inf, items, 0).astype(jnp.int32)


def _empty_readout(like: Readout, count: int, room: int) -> Readout:
    """Return zeros for `count` targets, with `room` more own items than `like` [B, P, ...] has."""

    def zeros(array: Array, more: int) -> np.ndarray:
        return np.zeros((count, array.shape[-1] + more), array.dtype)

    own = None if like.own is None else OwnItems(*(zeros(a, room) for a in like.own))  # type: ignore[arg-type]
    return Readout(zeros(like.vectors, 0), own)  # type: ignore[arg-type]


def _window_widths(longest: int) -> np.ndarray:
    """Return the window widths that are compiled: one for short windows, else four equal steps."""
    steps = 1 if longest < 64 else 4
    return -(-longest * np.arange(1, steps + 1) // steps)


def _request_times(
    histories: Histories, rows: Rows, batch: np.ndarray, request_time: int | None
) -> np.ndarray | None:
    """Return the query time of the last event of each row: int32 [B], or None without times."""
    if histories.times is None:
        return None
    if request_time is not None:
        return np.full(len(batch), request_time, np.int32)
    return histories.times[histories.offsets[rows.user[batch]] + rows.end[batch]]
