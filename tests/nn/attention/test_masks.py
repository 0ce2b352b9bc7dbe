"""The mask rule, against literal 0/1 matrices: rows down, keys across."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.nn.attention import Block, VisibleRange, causal_blocks, mask_of


def visible_range(*bounds):
    """slot_lo, slot_hi, item_lo, item_hi: one number per row, for one user."""
    return VisibleRange(*(jnp.array([bound], jnp.int32) for bound in bounds))


def whole_mask(blocks, tokens):
    """The rows of all blocks over all tokens, without slots."""
    full = np.zeros((tokens, tokens), int)
    for block in blocks:
        keys = slice(block.key_start + block.item_start, block.key_stop)
        full[block.row_start : block.row_stop, keys] = mask_of(block, 0)[0]
    return full


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
    np.testing.assert_array_equal(
        whole_mask(causal_blocks(5, 0, rows), 5),
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    )


@pytest.mark.parametrize("rows", [2, 4, 128])
@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        (
            1,
            [
                [1, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0],
                [0, 0, 1, 0, 0, 0],
                [0, 0, 1, 1, 0, 0],
                [0, 0, 0, 0, 1, 0],
                [0, 0, 0, 0, 1, 1],
            ],
        ),
        (
            2,
            [
                [1, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0],
                [1, 1, 1, 0, 0, 0],
                [1, 1, 1, 1, 0, 0],
                [0, 0, 1, 1, 1, 0],
                [0, 0, 1, 1, 1, 1],
            ],
        ),
    ],
)
def test_causal_blocks_of_segments(segments, expected, rows):
    """Segments of two events; an event sees its own segment, and with 2 the one before."""
    blocks = causal_blocks(6, 0, rows, segment=2, segments=segments)
    np.testing.assert_array_equal(whole_mask(blocks, 6), expected)


def test_a_segment_longer_than_two_blocks_is_cut():
    blocks = causal_blocks(5, 0, rows=2, segment=5, segments=1)
    assert [(b.row_start, b.row_stop) for b in blocks] == [(0, 2), (2, 4), (4, 5)]
    np.testing.assert_array_equal(whole_mask(blocks, 5), np.tril(np.ones((5, 5))))


def test_events_after_slots_see_no_slots():
    [block] = causal_blocks(3, first=2)
    assert (block.row_start, block.row_stop, block.key_start, block.key_stop) == (2, 5, 2, 5)
    # keys: 3 items
    np.testing.assert_array_equal(mask_of(block, 2)[0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_cached_slots_are_keys_but_no_rows():
    """Two cached slots, a query token and two events; rows are the query and the events."""
    visible = visible_range([0, 1, 1], [3, 2, 2], [0, 0, 0], [2, 1, 2])
    block = Block(visible, row_start=2, row_stop=5, key_start=0, key_stop=5)
    # keys: 2 cached slots, 1 query | 2 items
    expected = [[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 1, 0, 1, 1]]
    np.testing.assert_array_equal(mask_of(block, 3)[0], expected)
