"""Exact memory: the items that a user comes back to, each with a weight and a last time.

Vectors forget ids. A table of E entries (item, weight, last time) keeps the ids that matter, so that an
item of the archive can be scored as itself. The weight is a count that fades: each event adds 1, and
each segment takes 1/16 of the old weight, so that half of it is left after eleven segments. An update
adds the events of one segment and keeps the E items of the highest weight. This is LRFU, a cache policy
between least recently and least frequently used (Lee et al. 2001).

All of it is integer arithmetic. The table is therefore the same on all platforms, whether segments are
folded one by one or in a training batch, and a stored table is not rounded.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec2pm_jax.methods.windows import Window, up_to
from rec2pm_jax.nn.gaps import MINUTE
from rec2pm_jax.typing import PADDING_ID, Array, ExactMemory

ONE = 256  # the weight of an event
FADE_BITS = 4  # a segment takes 2^-4 of a weight
WEIGHT_BYTES, CLOCK_BYTES = 2, 3  # of a stored entry, see `state_format`
MAX_WEIGHT = 2 ** (8 * WEIGHT_BYTES) - 1
MAX_CLOCK = 2 ** (8 * CLOCK_BYTES) - 1  # 31 years in minutes


def empty_exact(batch_size: int, entries: int) -> ExactMemory:
    """Return tables without items: int32 [batch_size, entries] each."""
    zeros = jnp.zeros((batch_size, entries), jnp.int32)
    return ExactMemory(zeros, zeros, zeros)


def update_exact(exact: ExactMemory, ids: Array, clock: Array) -> ExactMemory:
    """Add the events of a segment and keep the items that fit.

    Args:
      exact: the tables of B users.
      ids: int32 [B, S], items of the segment, 0 where padded. A row without any keeps its table bit
        for bit.
      clock: int32 [B, S], when the events happened, see `ExactMemory.last`.

    Returns:
      Tables of the same shape, entries by weight and then by last time, the highest first. Of equal
      entries the one that entered first wins.

    >>> table = update_exact(empty_exact(1, 3), jnp.array([[7, 8, 7]]), jnp.array([[1, 2, 3]]))
    >>> table.items.tolist(), table.weights.tolist(), table.last.tolist()
    ([[7, 8, 0]], [[512, 256, 0]], [[3, 2, 0]])
    """
    entries = exact.items.shape[1]
    if not entries:
        return exact
    real = ids != PADDING_ID
    faded = exact.weights - (exact.weights >> FADE_BITS)
    items = jnp.concatenate([exact.items, ids], axis=1)
    weights = jnp.concatenate([faded, jnp.where(real, ONE, 0)], axis=1)
    last = jnp.concatenate([exact.last, clock], axis=1)

    # Events of one item become one entry, in the place of the first.
    same = items[:, :, None] == items[:, None, :]
    weights = jnp.minimum(jnp.sum(jnp.where(same, weights[:, None, :], 0), axis=2), MAX_WEIGHT)
    last = jnp.max(jnp.where(same, last[:, None, :], 0), axis=2)
    place = jnp.arange(items.shape[1], dtype=jnp.int32)
    repeated = jnp.any(same & (place[None, :] < place[:, None]), axis=2)
    unused = repeated | (items == PADDING_ID)

    order = jnp.lexsort((-last, -weights, unused), axis=1)[:, :entries]  # stable, last key first
    table = jax.tree.map(
        lambda a: jnp.take_along_axis(jnp.where(unused, 0, a), order, axis=1),
        ExactMemory(items, weights, last),
    )
    changed = jnp.any(real, axis=1)[:, None]
    return jax.tree.map(lambda new, old: jnp.where(changed, new, old), table, exact)


def total_weight(segments: Array, segment: int) -> Array:
    """Return about what all weights of an archive add up to: int32, the shape of `segments`."""
    return ONE * segment * jnp.minimum(segments, 2**FADE_BITS)


def event_clock(window: Window, before: Array, use_times: bool) -> Array:
    """Return when the events of a window happened, as `ExactMemory.last` counts: int32 [B, N].

    Times outside of what an entry holds, from the time origin to 31 years later, count as its ends.

    Args:
      window: the events.
      before: int32 [B], events of the user before the window.
      use_times: whether events have real times.
    """
    if use_times:
        assert window.events.times is not None, "a model that uses times gets them"
        clock = window.events.times // MINUTE
    else:
        clock = before[:, None] + jnp.arange(window.size, dtype=jnp.int32)
    return jnp.clip(clock, 0, MAX_CLOCK)


def scan_exact(
    history: Window, entries: int, segment: int, use_times: bool
) -> tuple[ExactMemory, ExactMemory]:
    """Fold whole histories segment by segment.

    Args:
      history: B rows of K * S events, the first of which is number 0. Events after `lengths` are
        padding or do not count.
      entries: E.
      segment: S.
      use_times: whether events have real times.

    Returns:
      (the tables after the histories, int32 [B, E] each; before each segment, [B * K, E] each).
    """
    count = history.size // segment
    users = history.lengths.shape[0]
    clock = event_clock(history, jnp.zeros(users, jnp.int32), use_times)

    def by_segment(a: Array) -> Array:  # B K*S -> K B S
        return jnp.swapaxes(a.reshape(users, count, segment), 0, 1)

    def body(table: ExactMemory, inputs: tuple[Array, Array]) -> tuple[ExactMemory, ExactMemory]:
        return update_exact(table, *inputs), table

    ids = up_to(history.events.ids, history.lengths)
    inputs = by_segment(ids), by_segment(clock)
    after, before = jax.lax.scan(body, empty_exact(users, entries), inputs)
    return after, jax.tree.map(
        lambda a: jnp.swapaxes(a, 0, 1).reshape(users * count, entries), before
    )
