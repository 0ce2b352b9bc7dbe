"""Token layouts of the passes: where memory, queries and events are, and who sees whom.

Tokens are [slots; items]. C slots make a group. Memory groups are aligned to the right, next to the
queries, so that "the groups in use and my queries" is always one interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from rec2pm_jax.nn.attention import Block, Layout, VisibleRange, causal_blocks
from rec2pm_jax.typing import Array

BLOCK_ROWS = 128  # event rows of a block; longer passes skip most of the empty upper triangle


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes that a layout depends on.

    Attributes:
      slots: C.
      groups: G, memory groups that the pass holds.
      segment: S.
      block_rows: event rows of a block. The masked pass rounds to whole windows.
    """

    slots: int
    groups: int
    segment: int
    block_rows: int = BLOCK_ROWS

    @property
    def memory(self) -> int:
        """Memory slots of the pass: G * C."""
        return self.groups * self.slots


def causal(length: int, row_times: Array | None, key_times: Array | None) -> Layout:
    """Return one causal pass over `length` events, without slots (`full`, `recent`)."""
    place = jnp.arange(length, dtype=jnp.int32)
    return Layout(
        blocks=causal_blocks(length, 0),
        place=place[None],
        slot_ids=jnp.zeros(0, jnp.int32),
        row_times=row_times,
        key_times=key_times,
        num_slots=0,
    )


def update(
    lengths: Array,
    groups: Array,
    sizes: Sizes,
    *,
    num_items: int,
    with_queries: bool,
    causal_queries: bool = False,
    row_times: Array | None = None,
    key_times: Array | None = None,
) -> Layout:
    """Return [M_{h-1}; S_h; Q] of the update pass, or [M; recent] of a read (`with_queries=False`).

    Queries see the memory, the first S events and each other (with `causal_queries` those up to
    themselves). Events see the memory and the events up
    to themselves. Memory tokens see the memory.

    Args:
      lengths: int32 [B], valid events per row (a prefix).
      groups: int32 [B], memory groups in use; a row with none sees no memory.
      sizes: C, G and S.
      num_items: event tokens; more than S of them when R > 1.
      with_queries: whether Q is part of the pass.
      causal_queries: whether a query sees earlier queries only, as in PerSRec's code.
      row_times: int32 [B, num_items], query times; a slot's is the time of the segment's last event.
      key_times: int32 [B, num_items], times of the events.
    """
    batch, memory = lengths.shape[0], sizes.memory
    queries = sizes.slots if with_queries else 0
    start = (memory - groups * sizes.slots)[:, None]

    def spread(value: ArrayLike, count: int) -> Array:
        return jnp.broadcast_to(jnp.asarray(value, jnp.int32), (batch, count))

    place = jnp.arange(num_items, dtype=jnp.int32)[None]
    covered = jnp.minimum(lengths, sizes.segment)[:, None]
    num_slots, tokens = memory + queries, memory + queries + num_items
    query_hi = memory + _last_query_seen(queries, causal_queries)
    visible = VisibleRange(
        slot_lo=spread(start, tokens),
        slot_hi=jnp.concatenate(
            [spread(memory, memory), spread(query_hi, queries), spread(memory, num_items)], 1
        ),
        item_lo=spread(0, tokens),
        item_hi=jnp.concatenate(
            [spread(0, memory), spread(covered, queries), spread(place + 1, num_items)], 1
        ),
    )
    cuts = [(0, tokens, tokens)]
    if num_items > sizes.block_rows:
        starts = range(num_slots, tokens, sizes.block_rows)
        stops = [min(begin + sizes.block_rows, tokens) for begin in starts]
        cuts = [(begin, stop, stop) for begin, stop in zip(starts, stops, strict=True)]
        if num_slots:
            seen = min(sizes.segment, num_items) if queries else 0
            cuts.insert(0, (0, num_slots, num_slots + seen))
    slot_ids = jnp.arange(memory, dtype=jnp.int32) % sizes.slots
    slot_place = jnp.concatenate([jnp.zeros(memory), jnp.full(queries, sizes.segment)])
    last = spread(jnp.maximum(covered - 1, 0), num_slots)
    row_times, key_times = _prepend_slot_times(last, row_times, key_times)
    return Layout(
        blocks=tuple(
            Block(VisibleRange(*(x[:, begin:end] for x in visible)), begin, end, 0, key_stop)
            for begin, end, key_stop in cuts
        ),
        place=jnp.concatenate([slot_place.astype(jnp.int32)[None], place], axis=1),
        slot_ids=jnp.concatenate([slot_ids, _query_ids(queries, sizes.slots)]),
        row_times=row_times,
        key_times=key_times,
        num_slots=num_slots,
    )


def reference(
    lengths: Array,
    query_ends: Array,
    sizes: Sizes,
    *,
    num_items: int,
    item_window: int | None,
    row_times: Array | None = None,
    key_times: Array | None = None,
) -> Layout:
    """Return [S_0; Q; S_1; Q; ...] of the reference pass, stored as [Q_0; Q_1; ...; items].

    Items attend causally to items only. Query group g sees itself and the items before
    `query_ends[:, g]`. No item row ever sees a query, so the item blocks skip the slot keys.

    Args:
      lengths: int32 [B], valid events per row.
      query_ends: int32 [1 or B, groups], end of the segment that each query group closes.
      sizes: C and S; the number of groups is that of `query_ends`.
      num_items: event tokens.
      item_window: segments that an item sees, its own included. None: all earlier ones.
      row_times: int32 [B, num_items], query times; a query asks for the time of the last event it sees.
      key_times: int32 [B, num_items], times of the events.
    """
    slots = sizes.slots
    groups = query_ends.shape[1]
    total = groups * slots
    first = (jnp.arange(groups, dtype=jnp.int32) * slots).repeat(slots)[None]
    ends = jnp.repeat(query_ends, slots, axis=1)
    stop = jnp.minimum(ends, lengths[:, None])
    queries = VisibleRange(first, first + slots, jnp.zeros_like(stop), stop)
    last = jnp.broadcast_to(jnp.maximum(stop - 1, 0), (lengths.shape[0], total))
    row_times, key_times = _prepend_slot_times(last, row_times, key_times)
    place = jnp.arange(num_items, dtype=jnp.int32)[None]
    place = jnp.broadcast_to(place, (ends.shape[0], num_items))
    return Layout(
        blocks=(
            Block(queries, 0, total, 0, total + num_items),
            *causal_blocks(num_items, total, segment=sizes.segment, segments=item_window or 0),
        ),
        place=jnp.concatenate([ends, place], axis=1),
        slot_ids=_query_ids(total, slots),
        row_times=row_times,
        key_times=key_times,
        num_slots=total,
    )


def masked(
    lengths: Array,
    sizes: Sizes,
    *,
    window: int,
    causal_queries: bool = False,
    row_times: Array | None = None,
    key_times: Array | None = None,
) -> Layout:
    """Return [W_0; Q; W_1; Q; ...] of KV-Mask's training, stored as [Q_0; Q_1; ...; W_0; W_1; ...].

    Window W_h is the segment S_h and, with R > 1, the R - 1 events after it, which are read with the
    same memory. Its events see causally their own window, and the newest G query groups before h.
    Group h sees the first S events of W_h, the same earlier groups, and itself; with `causal_queries`
    each of its tokens sees those up to itself.

    Args:
      lengths: int32 [B, K], valid events of each window (a prefix).
      sizes: C, G and S.
      window: N, event tokens per window.
      causal_queries: as in `update`.
      row_times: int32 [B, K * N], query times; a query asks for the time of its segment's last event.
      key_times: int32 [B, K * N], times of the events.
    """
    count, slots = lengths.shape[1], sizes.slots
    total = count * slots
    group = np.arange(count)
    covered = jnp.minimum(lengths, sizes.segment)
    oldest, newest = slots * np.maximum(group - sizes.groups, 0), slots * group
    first = window * group

    def each(value: ArrayLike, times: int) -> Array:  # [K] or [B, K] -> [1 or B, K * times]
        return jnp.repeat(jnp.atleast_2d(jnp.asarray(value, jnp.int32)), times, axis=1)

    place = jnp.tile(jnp.arange(window, dtype=jnp.int32), count)[None]
    queries = VisibleRange(
        slot_lo=each(oldest, slots),
        slot_hi=each(newest, slots) + jnp.tile(_last_query_seen(slots, causal_queries), count),
        item_lo=each(first, slots),
        item_hi=each(first + covered, slots),
    )
    items = VisibleRange(
        slot_lo=each(oldest, window),
        slot_hi=each(newest, window),
        item_lo=each(first, window),
        item_hi=each(first, window) + place + 1,
    )

    def blocks(visible: VisibleRange, per_window: int, before: int) -> Iterator[Block]:
        """Yield blocks of whole windows, `per_window` rows each, `before` tokens from the start."""
        step = max(1, sizes.block_rows // window)
        for start in range(0, count, step):
            stop = min(start + step, count)
            inside = slice(start * per_window, stop * per_window)
            yield Block(
                VisibleRange(*(x[:, inside] for x in visible)),
                row_start=before + inside.start,
                row_stop=before + inside.stop,
                key_start=0,
                key_stop=total + stop * window,
                item_start=start * window,
            )

    last = each(first + jnp.maximum(covered - 1, 0), slots)
    row_times, key_times = _prepend_slot_times(last, row_times, key_times)
    return Layout(
        blocks=(*blocks(queries, slots, 0), *blocks(items, window, total)),
        place=jnp.concatenate([jnp.full((1, total), sizes.segment, jnp.int32), place], axis=1),
        slot_ids=_query_ids(total, slots),
        row_times=row_times,
        key_times=key_times,
        num_slots=total,
    )


def without_memory_rows(layout: Layout, sizes: Sizes) -> Layout:
    """Return an `update` layout whose memory is keys and values cached from earlier passes.

    The memory slots are keys, but they are no rows. They were queries when they were computed, and
    keep the slot ids that they had then.
    """
    memory = sizes.memory
    first, *blocks = layout.blocks
    if first.row_stop > memory:
        visible = VisibleRange(*(x[:, memory:] for x in first.visible))
        blocks.insert(0, first.replace(visible=visible, row_start=memory))
    return layout.replace(blocks=tuple(blocks), slot_ids=_query_ids(layout.num_slots, sizes.slots))


def _prepend_slot_times(
    last: Array, row_times: Array | None, key_times: Array | None
) -> tuple[Array | None, Array | None]:
    """Return row and key times of all tokens; a slot has the time of the event `last` [B, slots]."""
    if row_times is None or key_times is None:
        return None, None
    at_slots = jnp.take_along_axis(key_times, last, axis=1)
    return (
        jnp.concatenate([at_slots, row_times], axis=1),
        jnp.concatenate([at_slots, key_times], axis=1),
    )


def _last_query_seen(queries: int, causal: bool) -> Array:
    """Return the end of the queries that each query of a group sees: int32 [queries]."""
    own = jnp.arange(1, queries + 1, dtype=jnp.int32)
    return own if causal else jnp.full_like(own, queries)


def _query_ids(count: int, slots: int) -> Array:
    """Return the rows of the slot bias of `count` query tokens: C + c."""
    return slots + jnp.arange(count, dtype=jnp.int32) % slots
