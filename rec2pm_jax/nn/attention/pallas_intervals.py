"""The masks of a pass as intervals over all of its keys, as the Pallas kernel reads them.

`attend_dense` goes block by block over the keys that each block can reach. The kernel goes tile by tile
over the whole pass. This module turns a layout into numbers per row, and into the tiles they touch.
"""

from __future__ import annotations

import jax.numpy as jnp

from rec2pm_jax.nn.attention.masks import Block, Layout
from rec2pm_jax.typing import Array


def layout_intervals(layout: Layout) -> Array:
    """Return what each row sees, as numbers of keys.

    Returns:
      int32 [1 or B, 4, rows]: [lo, hi) of the slots, then [lo, hi) of the items.
    """
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
        bounds = [jnp.asarray(x, jnp.int32) for x in (*slots, *items)]
        batch = max(x.shape[0] for x in bounds)
        parts.append(jnp.stack([jnp.broadcast_to(x, (batch, x.shape[1])) for x in bounds], axis=1))
    batch = max(part.shape[0] for part in parts)
    return jnp.concatenate([jnp.broadcast_to(p, (batch, *p.shape[1:])) for p in parts], axis=2)


def visible_tiles(intervals: Array, row_tile: int, key_tile: int) -> Array:
    """Return the tiles of keys that each tile of rows reads.

    Args:
      intervals: int32 [1 or B, 4, rows], of `layout_intervals`.
      row_tile, key_tile: rows and keys of a tile.

    Returns:
      int32 [1 or B, row tiles, 4]: tiles [begin, stop) that hold visible slots, then tiles
      [begin, stop) that hold visible items. A tile that holds both is only among the first.
    """
    rows = intervals.shape[2]
    padded = jnp.pad(intervals, ((0, 0), (0, 0), (0, -rows % row_tile)))
    lo, hi = (padded[:, n::2].reshape(len(padded), 2, -1, row_tile) for n in (0, 1))
    sees_any = lo < hi
    begin = jnp.min(jnp.where(sees_any, lo, jnp.iinfo(jnp.int32).max), axis=-1) // key_tile
    stop = -(-jnp.max(jnp.where(sees_any, hi, 0), axis=-1) // key_tile)
    begin = jnp.minimum(begin, stop)
    begin = begin.at[:, 1].max(stop[:, 0])  # slots come before items: a shared tile is read once
    stop = stop.at[:, 1].max(begin[:, 1])
    return jnp.stack([begin[:, 0], stop[:, 0], begin[:, 1], stop[:, 1]], axis=-1)


def count_reachable_keys(block: Block, num_slots: int) -> int:
    """Return how many keys the rows of a block can reach."""
    return block.key_stop - num_slots - block.item_start + (0 if block.key_start else num_slots)


def count_reachable_tiles(layout: Layout, row_tile: int, key_tile: int) -> int:
    """Return an upper bound of the tiles that one user's rows read, from the blocks alone."""
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


def join_biases(biases: tuple[Array, ...], layout: Layout, keys: int) -> Array:
    """Join the biases of all blocks into one array, 0 at keys that no row of a block reaches.

    Args:
      biases: one array [1 or B, rows, keys] per block.
      layout: of the pass.
      keys: tokens of the pass.

    Returns:
      float32 [1 or B, keys, rows].
    """
    first, parts = layout.num_slots, []
    for bias, block in zip(biases, layout.blocks, strict=True):
        slots = 0 if block.key_start else first
        bias = jnp.swapaxes(bias, 1, 2).astype(jnp.float32)
        part = jnp.zeros((bias.shape[0], keys, bias.shape[2]), jnp.float32)
        part = part.at[:, :slots].set(bias[:, :slots])
        parts.append(part.at[:, first + block.item_start : block.key_stop].set(bias[:, slots:]))
    batch = max(part.shape[0] for part in parts)
    return jnp.concatenate([jnp.broadcast_to(p, (batch, *p.shape[1:])) for p in parts], axis=2)
