"""Token layouts of the passes: where memory, queries and events stand and who sees whom.

Tokens are [slots; items]. C slots make a group; memory groups are aligned to the right, next to the
queries, so that "the groups in use and my own queries" is always one interval.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rec2pm_jax.nn.attention import Block, Layout, VisibleRange, causal_blocks
from rec2pm_jax.typing import Array


def query_times(times: Array | None, lengths: Array, request_time: Array | None) -> Array | None:
    """The time each event row asks for: the next event's, or `request_time` after the last valid one.

    times: int32 [B, N], or None for events without times; lengths: int32 [B], valid events;
    request_time: int32 [B], or None to ask at the last event's own time. Returns int32 [B, N] or None.
    """
    if times is None:
        return None
    following = jnp.concatenate([times[:, 1:], times[:, -1:]], axis=1)
    last = jnp.arange(times.shape[1], dtype=jnp.int32) == lengths[:, None] - 1
    asked = times if request_time is None else request_time[:, None]
    return jnp.where(last, asked, following)


def causal(length: int, row_times: Array | None, key_times: Array | None) -> Layout:
    """One causal pass over `length` events, no slots (`full`, `recent`)."""
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
    *,
    num_items: int,
    slots: int,
    max_groups: int,
    segment: int,
    with_queries: bool,
    hidden: Array | None = None,
    row_times: Array | None = None,
    key_times: Array | None = None,
    rows: int = 128,
) -> Layout:
    """[M_{h-1}; S_h; Q] of the update pass, or [M; recent] of a read (`with_queries=False`).

    Args:
      lengths: int32 [B], valid events per row (a prefix).
      groups: int32 [B], memory groups in use; a row with none sees no memory.
      num_items: event tokens; more than `segment` of them when R > 1.
      slots: C; max_groups: G, memory groups the pass holds; segment: S.
      hidden: int32 [B], events before this index are hidden from later events (training only).
      row_times, key_times: int32 [B, num_items]; queries ask for the time of the segment's last event.
      rows: event rows of a block; of passes with more, most of the empty upper triangle is skipped.

    Queries see the memory, the first `segment` events and themselves; events see the memory and the
    events up to themselves; memory tokens see the memory.
    """
    batch = lengths.shape[0]
    memory = max_groups * slots
    queries = slots if with_queries else 0
    start = (memory - groups * slots)[:, None]

    def spread(value, count):
        return jnp.broadcast_to(jnp.asarray(value, jnp.int32), (batch, count))

    place = jnp.arange(num_items, dtype=jnp.int32)[None]
    lo = jnp.zeros_like(start) if hidden is None else jnp.minimum(hidden[:, None], place)
    covered = jnp.minimum(lengths, segment)[:, None]
    visible = VisibleRange(
        slot_lo=spread(start, memory + queries + num_items),
        slot_hi=jnp.concatenate(
            [spread(memory, memory), spread(memory + queries, queries), spread(memory, num_items)],
            1,
        ),
        item_lo=jnp.concatenate([spread(0, memory + queries), spread(lo, num_items)], 1),
        item_hi=jnp.concatenate(
            [spread(0, memory), spread(covered, queries), spread(place + 1, num_items)], 1
        ),
    )
    num_slots, tokens = memory + queries, memory + queries + num_items
    cuts = [(0, tokens, tokens)]
    if num_items > rows:
        starts = range(num_slots, tokens, rows)
        cuts = [(begin, min(begin + rows, tokens), min(begin + rows, tokens)) for begin in starts]
        if num_slots:
            cuts.insert(0, (0, num_slots, num_slots + (min(segment, num_items) if queries else 0)))
    slot_ids = jnp.arange(memory, dtype=jnp.int32) % slots
    slot_ids = jnp.concatenate([slot_ids, slots + jnp.arange(queries, dtype=jnp.int32)])
    slot_place = jnp.concatenate([jnp.zeros(memory), jnp.full(queries, segment)]).astype(jnp.int32)
    if row_times is not None:
        last = jnp.take_along_axis(key_times, jnp.maximum(covered - 1, 0), axis=1)
        at_slots = spread(last, memory + queries)
        row_times = jnp.concatenate([at_slots, row_times], axis=1)
        key_times = jnp.concatenate([at_slots, key_times], axis=1)
    return Layout(
        blocks=tuple(
            Block(VisibleRange(*(span[:, begin:end] for span in visible)), begin, end, 0, key_stop)
            for begin, end, key_stop in cuts
        ),
        place=jnp.concatenate([slot_place[None], place], axis=1),
        slot_ids=slot_ids,
        row_times=row_times,
        key_times=key_times,
        num_slots=memory + queries,
    )


def reference(
    lengths: Array,
    query_ends: Array,
    *,
    num_items: int,
    slots: int,
    horizons: tuple[int, ...],
    segment: int = 0,
    segments: int = 0,
    row_times: Array | None = None,
    key_times: Array | None = None,
) -> Layout:
    """[S_0; Q; S_1; Q; ...] of the reference pass, stored as [Q_0; Q_1; ...; items].

    Items attend causally to items only (how far back, see `causal_blocks`); query group g sees itself
    and the items before `query_ends[:, g]`, its slot c only the newest `horizons[c]` of them. No item
    row ever reaches a query, so the item block skips the slot keys altogether.

    Args:
      lengths: int32 [B], valid events per row.
      query_ends: int32 [1 or B, groups], end of the segment each query group closes.
      num_items, slots: event tokens and C.
      horizons: events, one number per slot.
      segment, segments: S, and segments an item sees, its own included; 0: all earlier ones.
      row_times, key_times: int32 [B, num_items].
    """
    groups = query_ends.shape[1]
    total = groups * slots
    first = (jnp.arange(groups, dtype=jnp.int32) * slots).repeat(slots)[None]
    ends = jnp.repeat(query_ends, slots, axis=1)
    stop = jnp.minimum(ends, lengths[:, None])
    begin = jnp.maximum(stop - jnp.tile(jnp.asarray(horizons, jnp.int32), groups), 0)
    queries = VisibleRange(first, first + slots, begin, stop)
    place = jnp.arange(num_items, dtype=jnp.int32)[None]
    if row_times is not None:
        batch = key_times.shape[0]
        last = jnp.broadcast_to(jnp.maximum(stop - 1, 0), (batch, total))
        at_slots = jnp.take_along_axis(key_times, last, axis=1)
        row_times = jnp.concatenate([at_slots, row_times], axis=1)
        key_times = jnp.concatenate([at_slots, key_times], axis=1)
    place = jnp.broadcast_to(place, (ends.shape[0], num_items))
    return Layout(
        blocks=(
            Block(queries, 0, total, 0, total + num_items),
            *causal_blocks(num_items, total, segment=segment, segments=segments),
        ),
        place=jnp.concatenate([ends, place], axis=1),
        slot_ids=_query_ids(total, slots),
        row_times=row_times,
        key_times=key_times,
        num_slots=total,
    )


def masked(
    lengths: Array,
    *,
    window: int,
    slots: int,
    max_groups: int,
    segment: int,
    row_times: Array | None = None,
    key_times: Array | None = None,
    rows: int = 128,
) -> Layout:
    """[W_0; Q; W_1; Q; ...] of KV-Mask's training pass, stored as [Q_0; Q_1; ...; W_0; W_1; ...].

    Window W_h is the segment S_h and, with R > 1, the R - 1 events after it, which are read with the
    same memory. Its events see causally their own window and the newest `max_groups` query groups
    before h; group h sees the first `segment` events of W_h, the same earlier groups, and itself.

    Args:
      lengths: int32 [B, K], valid events of each window (a prefix).
      window: N, event tokens per window; slots: C; max_groups: G; segment: S.
      row_times, key_times: int32 [B, K * N]; a query asks for the time of its segment's last event.
      rows: event rows of a block, rounded to whole windows; blocks leave out the other windows' events.
    """
    count = lengths.shape[1]
    total = count * slots
    group = np.arange(count)
    covered = jnp.minimum(lengths, segment)
    oldest, newest = slots * np.maximum(group - max_groups, 0), slots * group
    first = window * group

    def each(value, times):  # [K] or [B, K] -> [1 or B, K * times]
        return jnp.repeat(jnp.atleast_2d(jnp.asarray(value, jnp.int32)), times, axis=1)

    place = jnp.tile(jnp.arange(window, dtype=jnp.int32), count)[None]
    queries = VisibleRange(
        slot_lo=each(oldest, slots),
        slot_hi=each(newest + slots, slots),
        item_lo=each(first, slots),
        item_hi=each(first + covered, slots),
    )
    items = VisibleRange(
        slot_lo=each(oldest, window),
        slot_hi=each(newest, window),
        item_lo=each(first, window),
        item_hi=each(first, window) + place + 1,
    )

    def blocks(visible, per_window, before):
        """Blocks of whole windows: rows are `per_window` tokens of each, `before` tokens come first."""
        step = max(1, rows // window)
        for start in range(0, count, step):
            stop = min(start + step, count)
            inside = slice(start * per_window, stop * per_window)
            yield Block(
                VisibleRange(*(span[:, inside] for span in visible)),
                row_start=before + inside.start,
                row_stop=before + inside.stop,
                key_start=0,
                key_stop=total + stop * window,
                item_start=start * window,
            )

    if row_times is not None:
        last = each(first + jnp.maximum(covered - 1, 0), slots)
        at_slots = jnp.take_along_axis(key_times, last, axis=1)
        row_times = jnp.concatenate([at_slots, row_times], axis=1)
        key_times = jnp.concatenate([at_slots, key_times], axis=1)
    return Layout(
        blocks=(*blocks(queries, slots, 0), *blocks(items, window, total)),
        place=jnp.concatenate([jnp.full((1, total), segment, jnp.int32), place], axis=1),
        slot_ids=_query_ids(total, slots),
        row_times=row_times,
        key_times=key_times,
        num_slots=total,
    )


def cached(lengths: Array, groups: Array, *, slots: int, max_groups: int, **options) -> Layout:
    """`update` for a memory of keys and values kept from earlier passes (arguments as there).

    The kept tokens are the first slots but no rows. They were queries when they were made and keep
    the slot ids they had then.
    """
    layout = update(lengths, groups, slots=slots, max_groups=max_groups, **options)
    memory = max_groups * slots
    first, *blocks = layout.blocks
    if first.row_stop > memory:
        visible = VisibleRange(*(span[:, memory:] for span in first.visible))
        blocks.insert(0, first.replace(visible=visible, row_start=memory))
    return layout.replace(
        blocks=tuple(blocks),
        slot_ids=_query_ids(layout.num_slots, slots),
    )


def _query_ids(count: int, slots: int) -> Array:
    """Rows of the slot bias of `count` query tokens: C + c."""
    return slots + jnp.arange(count, dtype=jnp.int32) % slots
