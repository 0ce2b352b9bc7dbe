"""The one mask rule: which tokens of a pass see which others.

Tokens of a pass are ordered [slots; items]: memory and query tokens first, then events. Every mask of
this project is a `VisibleRange`: each row sees one interval of slots and one interval of items. A pass
consists of a few `Block`s of rows, each with the keys that its rows can reach. Keys that no row of a
block sees are never computed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct

from rec2pm_jax.typing import Array


class VisibleRange(NamedTuple):
    """What each row sees: slots [slot_lo, slot_hi) and items [item_lo, item_hi).

    All four are int32 [1 or B, rows]. An empty interval sees nothing.
    """

    slot_lo: Array
    slot_hi: Array
    item_lo: Array
    item_hi: Array


class Block(struct.PyTreeNode):
    """Rows [row_start, row_stop) of the token axis attend to keys [key_start, key_stop).

    Attributes:
      visible: what each of these rows sees within those keys.
      row_start, row_stop: tokens that are the rows.
      key_start: 0 (slots and items are keys) or the layout's num_slots (items only).
      key_stop: the token after the last key.
      item_start: items before this one are not keys.
    """

    visible: VisibleRange
    row_start: int = struct.field(pytree_node=False)
    row_stop: int = struct.field(pytree_node=False)
    key_start: int = struct.field(pytree_node=False)
    key_stop: int = struct.field(pytree_node=False)
    item_start: int = struct.field(pytree_node=False, default=0)

    def select_keys(self, x: Array, num_slots: int) -> Array:
        """Take the block's keys out of all tokens: [B, tokens, ...] -> [B, keys, ...]."""
        items = x[:, num_slots + self.item_start : self.key_stop]
        if self.key_start:
            return items
        if not self.item_start:
            return x[:, : self.key_stop]
        return jnp.concatenate([x[:, :num_slots], items], axis=1)


class Layout(struct.PyTreeNode):
    """The tokens of a pass: who sees whom, and the place and the time of each token.

    The first slots may be cached tokens of an earlier pass (`KeyValues`). They are keys, but not rows.

    Attributes:
      blocks: disjoint blocks of rows, in order. They cover all tokens except the cached ones.
      place: int32 [1 or B, tokens], the position that a relative bias uses. A query token has the
        place of the next event; memory tokens have none, and their entries are unused.
      slot_ids: int32 [num_slots], row of the learned slot bias: c for memory slot c, C + c for query c.
      row_times: int32 [B, tokens] seconds, each row's query time (the next event's time), or None.
      key_times: int32 [B, tokens] seconds, the time of the token itself, or None.
      num_slots: slots before the first item.
    """

    blocks: tuple[Block, ...]
    place: Array  # 1|B tokens
    slot_ids: Array  # num_slots
    row_times: Array | None  # B tokens
    key_times: Array | None  # B tokens
    num_slots: int = struct.field(pytree_node=False)

    @property
    def first_row(self) -> int:
        """The token that is the first row."""
        return self.blocks[0].row_start


def causal_blocks(
    length: int, first: int, rows: int = 128, segment: int = 0, segments: int = 0
) -> tuple[Block, ...]:
    """Return blocks of event rows that see the earlier events and themselves.

    Blocks of few rows skip most of the empty upper triangle.

    Args:
      length: events. They are tokens [first, first + length), and see no slots.
      first: token of the first event.
      rows: event rows of a block. With `segments`, whole segments if those are at most two blocks long.
      segment: events of a segment, S.
      segments: segments that an event sees, including its own; the cost is then linear in `length`.
        0: all earlier events.

    Returns:
      The blocks, in the order of their rows.

    >>> [(b.row_start, b.row_stop, b.key_stop) for b in causal_blocks(5, first=0, rows=2)]
    [(0, 2, 2), (2, 4, 4), (4, 5, 5)]
    """
    if segments and segment <= 2 * rows:
        rows = max(1, rows // segment) * segment
    blocks = []
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        row = np.arange(start, stop, dtype=np.int32)[None]
        oldest = np.maximum((row // segment - segments + 1) * segment, 0) if segments else 0 * row
        none = np.zeros_like(row)
        visible = VisibleRange(*(jnp.asarray(x) for x in (none, none, oldest, row + 1)))
        extent = (first + start, first + stop, first, first + stop)
        blocks.append(Block(visible, *extent, item_start=int(oldest[0, 0])))
    return tuple(blocks)


def mask_of(block: Block, num_slots: int) -> Array:
    """Return the block's mask, bool [1 or B, rows, keys], with keys as `select_keys` orders them.

    >>> [block] = causal_blocks(3, first=0)
    >>> mask_of(block, num_slots=0).astype(int)[0].tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    visible = block.visible

    def inside(lo: Array, hi: Array, start: int, stop: int) -> Array:
        key = jnp.arange(start, stop, dtype=jnp.int32)
        return (key >= lo[..., None]) & (key < hi[..., None])

    items = inside(visible.item_lo, visible.item_hi, block.item_start, block.key_stop - num_slots)
    if block.key_start:
        return items
    slots = inside(visible.slot_lo, visible.slot_hi, 0, num_slots)
    batch = max(slots.shape[0], items.shape[0])
    parts = (jnp.broadcast_to(part, (batch, *part.shape[1:])) for part in (slots, items))
    return jnp.concatenate([*parts], axis=-1)
