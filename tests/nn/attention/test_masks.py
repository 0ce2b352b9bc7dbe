"""The mask rule, against literal 0/1 matrices: rows down, keys across."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.nn.attention import Block, VisibleRange, causal_blocks, mask_of


def visible_range(*bounds):
    """slot_lo, slot_hi, item_lo, item_hi: one number per row, for one user."""
    return VisibleRange(*(jnp.array([bound], jnp.int32) for bound in bounds))


def test_mask_is_one_interval_of_slots_and_one_of_items():
    visible = visible_range([0, 1], [1, 2], [0, 2], [2, 2])
    block = Block(visible, 0, 2, 0, 5)
    # keys: 2 slots | 3 items
    np.testing.assert_array_equal(mask_of(block, 2)[0], [[1, 0, 1, 1, 0], [0, 1, 0, 0, 0]])
    items_only = Block(visible, 0, 2, 2, 5)
    np.testing.assert_array_equal(mask_of(items_only, 2)[0], [[1, 1, 0], [0, 0, 0]])


def test_a_block_may_leave_out_first_items():
    visible = visible_range([0], [1], [2], [4])
    block = Block(visible, 0, 1, 0, 7, item_start=1)
    # keys: 2 slots | items 1 .. 4
    np.testing.assert_array_equal(mask_of(block, 2)[0], [[1, 0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(block.select_keys(jnp.arange(7)[None], 2)[0], [0, 1, 3, 4, 5, 6])


def test_mask_broadcasts_rows_shared_by_the_batch():
    one = jnp.array([[0]], jnp.int32)
    ends = jnp.array([[1], [2]], jnp.int32)
    mask = mask_of(Block(VisibleRange(one, one + 1, one, ends), 0, 1, 0, 3), 1)
    np.testing.assert_array_equal(mask, [[[1, 1, 0]], [[1, 1, 1]]])


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 128])
def test_causal_blocks_cover_the_lower_triangle(rows):
    full = np.zeros((5, 5), int)
    for block in causal_blocks(5, 0, rows):
        mask = np.asarray(mask_of(block, 0)[0])
        full[block.row_start : block.row_stop, block.key_start : block.key_stop] = mask
    np.testing.assert_array_equal(
        full,
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    )
