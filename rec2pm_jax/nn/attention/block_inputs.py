"""What a block of rows reads in blockwise attention, and the loop over groups of users."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.attention.masks import Block, Layout, VisibleRange
from rec2pm_jax.nn.attention.row_bands import Band
from rec2pm_jax.nn.attention.spec import AttentionDropout
from rec2pm_jax.typing import Array, PyTree

SCORE_BYTES = 1 << 20  # of one block of scores: stays in the cache of a CPU core

Biases = tuple[Array, ...] | None
Carry = TypeVar("Carry")


class BlockInputs(NamedTuple):
    """A block of rows of b users. Arrays with one row on the first axis serve every user."""

    q: Array  # b H rows dqk
    k: Array  # b H keys dqk
    v: Array  # b H keys dv
    bias: Array | None  # b|1 rows keys
    block: Block  # its ranges are [b|1, rows]
    numbers: Array | None  # b: int32, of `AttentionDropout.rows`


def select_block(
    number: int,
    q: Array,
    k: Array,
    v: Array,
    biases: Biases,
    layout: Layout,
    dropout: AttentionDropout | None,
) -> BlockInputs:
    """Select what block `number` of the layout reads."""
    block, first, slots = layout.blocks[number], layout.first_row, layout.num_slots
    k, v = (jnp.swapaxes(block.select_keys(jnp.swapaxes(x, 1, 2), slots), 1, 2) for x in (k, v))
    return BlockInputs(
        q=q[:, :, block.row_start - first : block.row_stop - first],
        k=k,
        v=v,
        bias=None if biases is None else biases[number],
        block=block,
        numbers=None if dropout is None else dropout.rows,
    )


class LoopedBlock(NamedTuple):
    """One step of the loop over a band's blocks."""

    number: Array  # int32: of the block in its layout
    start: Array  # int32: its first item
    visible: VisibleRange  # b|1 rows: of `Band.relative_ranges`
    q: Array  # b H rows dqk


def stack_blocks(band: Band, q: Array, layout: Layout) -> LoopedBlock:
    """Stack the blocks of a band on a leading axis, for a loop over them."""
    rows = slice(band.rows.start - layout.first_row, band.rows.stop - layout.first_row)
    return LoopedBlock(
        jnp.asarray(band.numbers, jnp.int32),
        jnp.asarray(band.starts),
        band.relative_ranges(layout.num_slots),
        band.split(q[:, :, rows]),
    )


def select_looped_block(
    band: Band,
    block: LoopedBlock,
    k: Array,
    v: Array,
    layout: Layout,
    dropout: AttentionDropout | None,
) -> BlockInputs:
    """Select what a block of a band reads, inside the loop over the band's blocks."""
    k, v = (band.select_keys(x, block.start, layout.num_slots) for x in (k, v))
    relative = band.relative_block(block.visible, layout.num_slots)
    return BlockInputs(block.q, k, v, None, relative, None if dropout is None else dropout.rows)


def scan_users(
    run: Callable[[Carry, PyTree], tuple[Carry, PyTree]],
    carry: Carry,
    given: PyTree,
    inputs: BlockInputs,
) -> tuple[Carry, PyTree]:
    """Scan over groups of users whose scores fit the cache, or run once if all of them fit.

    Args:
      run: (carry, given) -> (carry, results [users of the group, ...]).
      carry: the first carry.
      given: arrays; those with as many rows as users are split over the groups.
      inputs: of all users, for the size of their scores.

    Returns:
      (the last carry, results of all users).
    """
    leaves, structure = jax.tree.flatten(given)
    users, heads, rows, _ = inputs.q.shape
    most = max(1, SCORE_BYTES // (4 * heads * rows * inputs.k.shape[2]))
    size = max(n for n in range(1, users + 1) if users % n == 0 and n <= most)
    if size == users:
        return run(carry, given)
    per_user = [x.shape[0] == users for x in leaves]
    grouped = [
        x.reshape(-1, size, *x.shape[1:]) for x, own in zip(leaves, per_user, strict=True) if own
    ]

    def step(carry: Carry, group: list[Array]) -> tuple[Carry, PyTree]:
        parts = iter(group)
        chosen = [next(parts) if own else x for x, own in zip(leaves, per_user, strict=True)]
        return run(carry, jax.tree.unflatten(structure, chosen))

    carry, results = jax.lax.scan(step, carry, grouped)
    return carry, jax.tree.map(lambda x: x.reshape(users, *x.shape[2:]), results)


def add_to_keys(total: Array, part: Array, block: Block, num_slots: int) -> Array:
    """Add [B, H, keys, d] of a block's keys to [B, H, tokens, d] of all tokens."""
    slots = 0 if block.key_start else num_slots
    first = num_slots + block.item_start
    total = total.at[:, :, :slots].add(part[:, :, :slots])
    return total.at[:, :, first : block.key_stop].add(part[:, :, slots:])
