"""The one mask rule, and attention as it defines it; `attend.py` is the seam.

Tokens of a pass are ordered [slots; items]: memory and query tokens first, then raw events. Every mask
in this project is a `VisibleRange`: for each row, one interval of slots and one interval of items that
the row may see. A pass is a few `Block`s of rows, each with the keys it can reach, so that key ranges
that no row of a block sees (items never see reference queries) are never computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rec2pm_jax.nn.dropout import per_row, random_bytes
from rec2pm_jax.typing import Array, PRNGKey


class VisibleRange(NamedTuple):
    """What each row sees: slots [slot_lo, slot_hi) and items [item_lo, item_hi).

    All are int32, shaped [1 or B, rows]. An empty interval sees nothing.
    """

    slot_lo: Array
    slot_hi: Array
    item_lo: Array
    item_hi: Array


@struct.dataclass
class Block:
    """Rows [row_start, row_stop) of the token axis attend to keys [key_start, key_stop).

    `visible` says what each of these rows sees within those keys. `key_start` is 0 (slots and items)
    or the layout's num_slots (items only). Items before `item_start` are not among the keys either.
    """

    visible: VisibleRange
    row_start: int = struct.field(pytree_node=False)
    row_stop: int = struct.field(pytree_node=False)
    key_start: int = struct.field(pytree_node=False)
    key_stop: int = struct.field(pytree_node=False)
    item_start: int = struct.field(pytree_node=False, default=0)

    def keys(self, x: Array, num_slots: int) -> Array:
        """The block's keys out of all tokens: [B, tokens, ...] -> [B, keys, ...]."""
        items = x[:, num_slots + self.item_start : self.key_stop]
        if self.key_start:
            return items
        if not self.item_start:
            return x[:, : self.key_stop]
        return jnp.concatenate([x[:, :num_slots], items], axis=1)


@struct.dataclass
class Layout:
    """The token layout of a pass: who sees whom, and where and when every token is.

    The first slots may be tokens of an earlier pass whose keys and values were kept (`KeyValues`):
    they are seen like any other, but they are no rows.

    Attributes:
      blocks: disjoint row blocks, in order, that cover all tokens but the kept ones.
      place: int32 [1 or B, tokens], position used by a relative bias (a query's is that of the next
        event; unused for memory tokens).
      slot_ids: int32 [num_slots], row of the learned slot bias: c for memory slot c, C + c for query c.
      row_times: int32 [B, tokens], the time a row asks for (the next event's), or None.
      key_times: int32 [B, tokens], the time of the event itself, or None.
      num_slots: slots before the first item.
    """

    blocks: tuple[Block, ...]
    place: Array
    slot_ids: Array
    row_times: Array | None
    key_times: Array | None
    num_slots: int = struct.field(pytree_node=False)

    @property
    def first_row(self) -> int:
        """The token of a pass that its first row is."""
        return self.blocks[0].row_start


class KeyValues(NamedTuple):
    """Keys and values of some tokens in one layer, or stacked over layers on a leading axis.

    k: [B, tokens, H, dqk]; v: [B, tokens, H, dv].
    """

    k: Array
    v: Array

    def before(self, own: KeyValues) -> KeyValues:
        """These tokens (kept from an earlier pass), then those of the pass itself."""
        return KeyValues(*(jnp.concatenate(pair, axis=1) for pair in zip(self, own, strict=True)))


def causal_blocks(
    length: int, first: int, rows: int = 128, segment: int = 0, segments: int = 0
) -> tuple[Block, ...]:
    """Blocks of `rows` causal event rows each, so that most of the empty upper triangle is skipped.

    Event tokens are [first, first + length) of the token axis and see nothing but earlier events: all
    of them, or those of their own and the `segments` - 1 segments before, so that cost grows linearly.
    Blocks are then whole segments where these are no longer than two blocks: fewer keys, equally many.
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
    """The block's mask as bool [1 or B, rows, keys]; keys as the block orders them."""
    visible = block.visible

    def inside(lo, hi, start, stop):
        key = jnp.arange(start, stop, dtype=jnp.int32)
        return (key >= lo[..., None]) & (key < hi[..., None])

    items = inside(visible.item_lo, visible.item_hi, block.item_start, block.key_stop - num_slots)
    if block.key_start:
        return items
    slots = inside(visible.slot_lo, visible.slot_hi, 0, num_slots)
    batch = max(slots.shape[0], items.shape[0])
    parts = (jnp.broadcast_to(part, (batch, *part.shape[1:])) for part in (slots, items))
    return jnp.concatenate([*parts], axis=-1)


@dataclasses.dataclass(frozen=True)
class ScoreNormalizer:
    """How scores become weights.

    Attributes:
      norm: 0 for softmax over the visible keys; else HSTU's pointwise SiLU(score) / norm, N.
      dropped: of 256 weights, how many dropout zeroes on average.
    """

    norm: float = 0.0
    dropped: int = 0

    def __call__(self, scores: Array, mask: Array) -> Array:
        """Weights before dropout; rows that see nothing give zeros.

        scores: float32 [B, H, rows, keys]; mask: bool broadcastable to it.
        """
        if self.norm:
            return jnp.where(mask, jax.nn.silu(scores) / self.norm, 0.0)
        scores = jnp.where(mask, scores, -jnp.inf)
        top = jnp.max(scores, axis=-1, keepdims=True, initial=-1e30)
        weights = jnp.exp(scores - jax.lax.stop_gradient(top))
        return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)


class AttentionDropout(NamedTuple):
    """Randomness of dropout on weights: a key for the layer, and int32 [B] row numbers (`per_row`)."""

    key: PRNGKey
    rows: Array

    def factors(self, normalizer: ScoreNormalizer, block: int, shape: tuple[int, ...]) -> Array:
        """What weights of a block are multiplied by, 0 or 1 / (1 - rate): float32 [B, *shape]."""
        key = jax.random.fold_in(self.key, block)
        bits = per_row(lambda k: random_bytes(k, shape), key, self.rows)
        scale = jnp.float32(256 / (256 - normalizer.dropped))
        return jnp.where(bits >= normalizer.dropped, scale, 0)


def dense(
    q: Array,
    k: Array,
    v: Array,
    layout: Layout,
    normalizer: ScoreNormalizer,
    biases: Sequence[Array] | None,
    dropout: AttentionDropout | None,
    watch: Callable[[Array], None] | None = None,
) -> Array:
    """`attend` with all scores of a block at once: the definition that others are tested against."""
    outputs = []
    first = layout.first_row
    for number, block in enumerate(layout.blocks):
        rows = slice(block.row_start - first, block.row_stop - first)
        block_k, block_v = (block.keys(x, layout.num_slots) for x in (k, v))
        # Rounding scores to bfloat16 before the exponential would cost more than it saves.
        scores = jnp.einsum(
            "bqhd,bkhd->bhqk", q[:, rows], block_k, preferred_element_type=jnp.float32
        )
        if biases is not None:
            scores = scores + biases[number][:, None].astype(jnp.float32)
        weights = normalizer(scores, mask_of(block, layout.num_slots)[:, None])
        if watch is not None:
            watch(weights)
        if dropout is not None:
            weights = weights * dropout.factors(normalizer, number, weights.shape[1:])
        outputs.append(jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), block_v))
    return jnp.concatenate(outputs, axis=1)
