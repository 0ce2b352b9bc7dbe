"""Reads rows with their memories and ranks the catalogue, in a few fixed shapes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.evaluate.memories import batches, take
from rec2pm_jax.evaluate.metrics import check_ranks, target_ranks
from rec2pm_jax.evaluate.targets import Histories, Rows, Targets
from rec2pm_jax.typing import State

_READ_TOKENS = 1 << 15  # events of a read batch
_SCORES = 1 << 22  # logits of a ranking chunk


@functools.partial(jax.jit, static_argnums=0)
def _read(method, params, state, events, valid, request_time, columns):
    """Outputs [B, P, D] at `columns` int32 [B, P] of windows [B, N]."""
    outputs = method.read_all(params, state, events, valid, request_time)
    return jnp.take_along_axis(outputs, columns[:, :, None], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _rank(method, params, vectors, targets, seen):
    """seen: int32 [B, N] ids left out of the ranking, 0 for none, or None."""
    scores = method.score(params, vectors)
    excluded = None
    if seen is not None:
        excluded = jnp.zeros(scores.shape, bool)
        excluded = excluded.at[jnp.arange(len(seen))[:, None], seen].set(True)
    return target_ranks(scores, targets, excluded)


def _widths(longest: int) -> np.ndarray:
    """Window widths that are compiled: one for short windows, else four equal steps."""
    steps = 1 if longest < 64 else 4
    return -(-longest * np.arange(1, steps + 1) // steps)


def read_targets(
    method,
    params,
    histories: Histories,
    rows: Rows,
    states: State,
    *,
    batch_size: int,
) -> np.ndarray:
    """The vector that predicts each target: float32 [T, W].

    Query times, for methods with a time bias, are the next event's times inside a window and the
    time of its last target for the last event.
    """
    lengths = rows.end - rows.start
    per_row = np.bincount(rows.target_row, minlength=len(lengths))
    by_row = np.argsort(rows.target_row, kind="stable")  # targets, row by row
    first = np.cumsum(per_row) - per_row
    slots = np.arange(per_row.max())

    widths = _widths(int(lengths.max()))
    width_of = widths[np.searchsorted(widths, lengths)]
    vectors = None
    for width in np.unique(width_of):
        in_width = np.flatnonzero(width_of == width)
        size = int(np.clip(_READ_TOKENS // width, 1, batch_size))
        for batch in batches(in_width, min(size, len(in_width))):
            real = batch >= 0
            used = (slots < per_row[batch][:, None]) & real[:, None]
            target = np.where(used, by_row[np.where(used, first[batch][:, None] + slots, 0)], -1)
            columns = np.where(used, rows.target_column[target], 0).astype(np.int32)
            # A padding row of the batch reads one real event, so that no row is empty.
            events, valid = histories.window(
                rows.user[batch],
                rows.start[batch],
                np.where(real, lengths[batch], 1),
                int(width),
            )
            outputs = _read(
                method,
                params,
                take(states, batch),
                events,
                valid,
                _request_time(histories, rows, batch),
                columns,
            )
            if vectors is None:
                vectors = np.empty((len(by_row), outputs.shape[-1]), outputs.dtype)
            vectors[target[used]] = np.asarray(outputs)[used]
    return vectors


def _request_time(histories: Histories, rows: Rows, batch: np.ndarray) -> np.ndarray | None:
    if histories.times is None:
        return None
    return histories.times[histories.offsets[rows.user[batch]] + rows.end[batch]]


def rank_targets(
    method,
    params,
    histories: Histories,
    targets: Targets,
    vectors: np.ndarray,
    *,
    mask_seen: bool = False,
) -> np.ndarray:
    """Pessimistic full-catalogue rank of each target: int64 [T].

    With `mask_seen` the items of the newest `method.read_length` events before the target are left out.

    Raises:
      UserError: some scores are NaN or infinite.
    """
    item = histories.ids[histories.offsets[targets.user] + targets.position]
    chunk = max(1, min(len(item), _SCORES // (method.num_items + 1)))
    ranks = np.zeros(len(item), np.int64)
    for batch in batches(np.arange(len(item)), chunk):
        real = batch >= 0
        seen = None
        if mask_seen:
            length = np.minimum(targets.position[batch], method.read_length)
            start = targets.position[batch] - length
            window, _ = histories.window(targets.user[batch], start, length, method.read_length)
            seen = window.ids
        chunk_ranks = np.asarray(_rank(method, params, vectors[batch], item[batch], seen))
        ranks[batch[real]] = chunk_ranks[real]
    return check_ranks(ranks)
