"""Bands of row blocks: a long pass as a few loops over blocks, so that its program stays short.

A loop's body is compiled once, however many blocks it covers. It also bounds memory: XLA would keep
the scores of many blocks at the same time, since unrolled blocks do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.nn.attention.masks import Block, Layout, VisibleRange
from rec2pm_jax.typing import Array

UNROLLED_BLOCKS = 9  # first blocks of a pass that get no loop: slots and 1,024 rows
MAX_PADDED_KEYS = 1.1  # keys that a band's blocks read, divided by those they reach


class Band(NamedTuple):
    """Consecutive blocks with equally many rows, each of which reads equally many keys.

    A block that reaches fewer keys than the widest one reads more keys and masks them.

    Attributes:
      numbers: of the blocks in their layout.
      blocks: the blocks; each has `rows` rows and the keys [slots; `width` items from starts[i] on].
      starts: int32 [blocks], first item that each block reads.
      width: items that each block reads.
      slots: slots that each block reads: all of the layout's, or 0.
    """

    numbers: range
    blocks: Sequence[Block]
    starts: np.ndarray
    width: int
    slots: int

    @property
    def rows(self) -> slice:
        """The tokens that are the band's rows."""
        return slice(self.blocks[0].row_start, self.blocks[-1].row_stop)

    def split(self, x: Array) -> Array:
        """Cut rows into blocks: [B, H, rows of the band, ...] -> [blocks, B, H, rows, ...]."""
        x = x.reshape(*x.shape[:2], len(self.blocks), -1, *x.shape[3:])
        return jnp.moveaxis(x, 2, 0)

    def join(self, x: Array) -> Array:
        """Invert `split`."""
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    def relative_block(self, visible: VisibleRange, num_slots: int) -> Block:
        """Return a block with keys numbered from its first one; visible: of `relative_ranges`."""
        like = self.blocks[0]
        rows, key_stop = like.row_stop - like.row_start, num_slots + self.width
        return Block(visible, 0, rows, like.key_start, key_stop)

    def relative_ranges(self, num_slots: int) -> VisibleRange:
        """Return what rows see, with items numbered from a block's first: [blocks, 1 or B, rows]."""
        ranges = []
        for block, start in zip(self.blocks, self.starts, strict=True):
            visible = block.visible
            lo = jnp.maximum(visible.item_lo, block.item_start) - start
            hi = jnp.minimum(visible.item_hi, block.key_stop - num_slots) - start
            ranges.append(VisibleRange(visible.slot_lo, visible.slot_hi, lo, hi))
        bounds = zip(*ranges, strict=True)
        return VisibleRange(*(jnp.stack(jnp.broadcast_arrays(*parts)) for parts in bounds))

    def select_keys(self, x: Array, start: Array, num_slots: int) -> Array:
        """Take a block's keys out of all tokens: [B, H, tokens, d] -> [B, H, keys, d]."""
        items = jax.lax.dynamic_slice_in_dim(x, num_slots + start, self.width, 2)
        return jnp.concatenate([x[:, :, : self.slots], items], axis=2) if self.slots else items

    def add_to_keys(self, total: Array, part: Array, start: Array, num_slots: int) -> Array:
        """Add [B, H, keys, d] of a block's keys to [B, H, tokens, d] of all tokens."""
        slots, items = part[:, :, : self.slots], part[:, :, self.slots :]
        if self.slots:
            total = total.at[:, :, : self.slots].add(slots)
        first = num_slots + start
        items = items + jax.lax.dynamic_slice_in_dim(total, first, self.width, 2)
        return jax.lax.dynamic_update_slice_in_dim(total, items, first, 2)


def group_blocks(layout: Layout, loops: bool = True) -> list[Band]:
    """Group the blocks of a layout into bands, in order.

    Args:
      layout: of the pass.
      loops: False puts every block into a band by itself, as is done with the first
        `UNROLLED_BLOCKS` in any case.
    """
    groups: list[list[int]] = []
    for number, block in enumerate(layout.blocks):
        may_join = loops and number > UNROLLED_BLOCKS
        if may_join and _fits([layout.blocks[i] for i in groups[-1]], block, layout):
            groups[-1].append(number)
        else:
            groups.append([number])
    return [_make_band(layout, numbers) for numbers in groups]


def _count_items(block: Block, layout: Layout) -> int:
    return block.key_stop - layout.num_slots - block.item_start


def _fits(blocks: list[Block], new: Block, layout: Layout) -> bool:
    """Return whether `new` can join a band."""

    def shape(block: Block) -> tuple[int, int]:
        return block.row_stop - block.row_start, block.key_start

    reached = [_count_items(block, layout) for block in (*blocks, new)]
    most = MAX_PADDED_KEYS * sum(reached)
    return shape(new) == shape(blocks[0]) and max(reached) * len(reached) <= most


def _make_band(layout: Layout, numbers: list[int]) -> Band:
    blocks = [layout.blocks[i] for i in numbers]
    width = max(_count_items(block, layout) for block in blocks)
    last = max(block.key_stop for block in layout.blocks) - layout.num_slots - width
    starts = np.array([min(block.item_start, last) for block in blocks], np.int32)
    slots = 0 if blocks[0].key_start else layout.num_slots
    return Band(range(numbers[0], numbers[-1] + 1), blocks, starts, width, slots)
