"""Bands of row blocks: a long pass as a few loops over blocks, instead of a program as long as it is.

What a loop's body needs is there once, however many blocks it runs over. Blocks written one after the
other depend on nothing of each other, and XLA keeps the scores of many of them at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.nn.attention import Block, Layout, VisibleRange
from rec2pm_jax.typing import Array

ALONE = 9  # blocks that a pass runs one by one before it loops: slots and 1,024 rows
WASTE = 1.1  # keys a band may look at, by the keys its blocks reach


class Band(NamedTuple):
    """Consecutive blocks of equally many rows, which look at equally many keys each.

    A block that reaches fewer keys than the widest one looks at more and masks them.

    Attributes:
      numbers: of the blocks in their layout.
      blocks: of rows [rows] and keys [slots; `width` items from `starts[i]` on].
      starts: int32 [blocks].
    """

    numbers: range
    blocks: Sequence[Block]
    starts: np.ndarray
    width: int
    slots: int  # before the items: the layout's, or none

    @property
    def rows(self) -> slice:
        return slice(self.blocks[0].row_start, self.blocks[-1].row_stop)

    def split(self, x: Array) -> Array:
        """[B, H, rows of the band, ...] -> [blocks, B, H, rows, ...]."""
        x = x.reshape(*x.shape[:2], len(self.blocks), -1, *x.shape[3:])
        return jnp.moveaxis(x, 2, 0)

    def join(self, x: Array) -> Array:
        """The inverse of `split`."""
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    def block(self, visible: VisibleRange, num_slots: int) -> Block:
        """One of the blocks as it sees its own keys; visible: of `relative_ranges`."""
        like = self.blocks[0]
        rows, key_stop = like.row_stop - like.row_start, num_slots + self.width
        return Block(visible, 0, rows, like.key_start, key_stop)

    def relative_ranges(self, num_slots: int) -> VisibleRange:
        """VisibleRange by the block's own keys: [blocks, 1 or B, rows] each."""
        each = []
        for block, start in zip(self.blocks, self.starts, strict=True):
            visible = block.visible
            lo = jnp.maximum(visible.item_lo, block.item_start) - start
            hi = jnp.minimum(visible.item_hi, block.key_stop - num_slots) - start
            each.append(VisibleRange(visible.slot_lo, visible.slot_hi, lo, hi))
        each = zip(*each, strict=True)
        return VisibleRange(*(jnp.stack(jnp.broadcast_arrays(*parts)) for parts in each))

    def keys(self, x: Array, start: Array, num_slots: int) -> Array:
        """A block's keys out of all tokens: [B, H, tokens, d] -> [B, H, keys, d]."""
        items = jax.lax.dynamic_slice_in_dim(x, num_slots + start, self.width, 2)
        return jnp.concatenate([x[:, :, : self.slots], items], axis=2) if self.slots else items

    def add(self, total: Array, part: Array, start: Array, num_slots: int) -> Array:
        """Adds [B, H, keys, d] of a block's keys to [B, H, tokens, d] of all of them."""
        slots, items = part[:, :, : self.slots], part[:, :, self.slots :]
        if self.slots:
            total = total.at[:, :, : self.slots].add(slots)
        first = num_slots + start
        items = items + jax.lax.dynamic_slice_in_dim(total, first, self.width, 2)
        return jax.lax.dynamic_update_slice_in_dim(total, items, first, 2)


def bands_of(layout: Layout, loops: bool = True) -> list[Band]:
    """All blocks of a layout in order; the first `ALONE`, or all without `loops`, by themselves."""
    groups: list[list[int]] = []
    for number, block in enumerate(layout.blocks):
        if loops and number > ALONE and _fit([layout.blocks[i] for i in groups[-1]], block, layout):
            groups[-1].append(number)
        else:
            groups.append([number])
    return [_band(layout, numbers) for numbers in groups]


def _items(block: Block, layout: Layout) -> int:
    return block.key_stop - layout.num_slots - block.item_start


def _fit(blocks: list[Block], new: Block, layout: Layout) -> bool:
    """Whether `new` can join a band."""

    def shape(block):
        return block.row_stop - block.row_start, block.key_start

    reached = [_items(block, layout) for block in (*blocks, new)]
    return shape(new) == shape(blocks[0]) and max(reached) * len(reached) <= WASTE * sum(reached)


def _band(layout: Layout, numbers: list[int]) -> Band:
    blocks = [layout.blocks[i] for i in numbers]
    width = max(_items(block, layout) for block in blocks)
    last = max(block.key_stop for block in layout.blocks) - layout.num_slots - width
    starts = np.array([min(block.item_start, last) for block in blocks], np.int32)
    slots = 0 if blocks[0].key_start else layout.num_slots
    return Band(range(numbers[0], numbers[-1] + 1), blocks, starts, width, slots)
