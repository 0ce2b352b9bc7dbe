"""A layout's intervals over all of its keys at once, as a kernel takes them.

`attention.dense` goes block by block with the keys each block can reach. A kernel goes tile by tile
over the whole pass: here are the same masks as numbers per row, and the tiles of keys they touch.
"""

from __future__ import annotations

import jax.numpy as jnp

from rec2pm_jax.nn.attention import Block, Layout
from rec2pm_jax.typing import Array


def intervals_of(layout: Layout) -> Array:
    """What each row sees, as key numbers: int32 [1 or B, 4, rows], [lo, hi) of slots, then of items."""
    first, parts = layout.num_slots, []
    for block in layout.blocks:
        visible = block.visible
        slots = (visible.slot_lo, jnp.minimum(visible.slot_hi, first))
        if block.key_start:
            slots = (jnp.zeros_like(visible.slot_lo),) * 2
        items = (
            jnp.maximum(visible.item_lo, block.item_start) + first,
            jnp.minimum(visible.item_hi + first, block.key_stop),
        )
        each = [jnp.asarray(x, jnp.int32) for x in (*slots, *items)]
        batch = max(x.shape[0] for x in each)
        parts.append(jnp.stack([jnp.broadcast_to(x, (batch, x.shape[1])) for x in each], axis=1))
    batch = max(part.shape[0] for part in parts)
    return jnp.concatenate([jnp.broadcast_to(p, (batch, *p.shape[1:])) for p in parts], axis=2)


def tiles_seen(intervals: Array, row_tile: int, key_tile: int) -> Array:
    """Tiles of keys that a tile of rows looks at: int32 [1 or B, row tiles, 4].

    They are [0, 1) of the last axis for slots, then [2, 3) for items; no tile is in both.
    """
    rows = intervals.shape[2]
    padded = jnp.pad(intervals, ((0, 0), (0, 0), (0, -rows % row_tile)))
    lo, hi = (padded[:, n::2].reshape(len(padded), 2, -1, row_tile) for n in (0, 1))
    some = lo < hi
    begin = jnp.min(jnp.where(some, lo, jnp.iinfo(jnp.int32).max), axis=-1) // key_tile
    stop = -(-jnp.max(jnp.where(some, hi, 0), axis=-1) // key_tile)
    begin = jnp.minimum(begin, stop)
    begin = begin.at[:, 1].max(stop[:, 0])  # slots stand before items: a shared tile is taken once
    stop = stop.at[:, 1].max(begin[:, 1])
    return jnp.stack([begin[:, 0], stop[:, 0], begin[:, 1], stop[:, 1]], axis=-1)


def reached(block: Block, num_slots: int) -> int:
    """How many keys a block of rows can reach."""
    return block.key_stop - num_slots - block.item_start + (0 if block.key_start else num_slots)


def tiles_reached(layout: Layout, row_tile: int, key_tile: int) -> int:
    """Most tiles that a user's rows can look at, by the blocks alone: `tiles_seen` is no more."""
    start, total = layout.first_row, 0
    rows = layout.blocks[-1].row_stop - start
    for begin in range(0, rows, row_tile):
        tiles: set[int] = set()
        for block in layout.blocks:
            if block.row_start - start < begin + row_tile and block.row_stop - start > begin:
                slots = 0 if block.key_start else layout.num_slots
                tiles |= set(range(-(-slots // key_tile)))
                items = layout.num_slots + block.item_start
                tiles |= set(range(items // key_tile, -(-block.key_stop // key_tile)))
        total += len(tiles)
    return total


def whole_bias(biases, layout: Layout, keys: int) -> Array:
    """Biases of all blocks as one float32 array [1 or B, keys, rows], 0 where no block reaches."""
    first, parts = layout.num_slots, []
    for bias, block in zip(biases, layout.blocks, strict=True):
        slots = 0 if block.key_start else first
        bias = jnp.swapaxes(bias, 1, 2).astype(jnp.float32)
        part = jnp.zeros((bias.shape[0], keys, bias.shape[2]), jnp.float32)
        part = part.at[:, :slots].set(bias[:, :slots])
        parts.append(part.at[:, first + block.item_start : block.key_stop].set(bias[:, slots:]))
    batch = max(part.shape[0] for part in parts)
    return jnp.concatenate([jnp.broadcast_to(p, (batch, *p.shape[1:])) for p in parts], axis=2)
