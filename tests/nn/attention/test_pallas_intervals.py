"""A layout as intervals over all keys, and the tiles of keys they touch."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.nn.attention import Block, Layout, VisibleRange, mask_of
from rec2pm_jax.nn.attention.pallas_intervals import (
    count_reachable_keys,
    count_reachable_tiles,
    join_biases,
    layout_intervals,
    visible_tiles,
)
from tests.helpers.attention import block_biases, small_layouts


def whole_mask(layout: Layout) -> np.ndarray:
    """0/1 [1 or B, rows, keys] by `mask_of`, block after block."""
    keys = layout.blocks[-1].row_stop
    parts = []
    for block in layout.blocks:
        mask = np.asarray(mask_of(block, layout.num_slots))
        whole = np.zeros((*mask.shape[:2], keys), int)
        columns = np.asarray(block.select_keys(jnp.arange(keys)[None], layout.num_slots)[0])
        whole[:, :, columns] = mask
        parts.append(whole)
    users = max(len(part) for part in parts)
    return np.concatenate([np.broadcast_to(p, (users, *p.shape[1:])) for p in parts], axis=1)


def interval_mask(intervals, keys: int) -> np.ndarray:
    lo, hi, item_lo, item_hi = (np.asarray(intervals)[:, n, :, None] for n in range(4))
    key = np.arange(keys)
    return (((key >= lo) & (key < hi)) | ((key >= item_lo) & (key < item_hi))).astype(int)


def test_intervals_against_a_literal_mask():
    visible = VisibleRange(
        *(jnp.array(x, jnp.int32) for x in ([[0, 1]], [[1, 9]], [[0, 2]], [[2, 3]]))
    )
    blocks = (Block(visible, 0, 2, 0, 5), Block(visible, 2, 4, 2, 4), Block(visible, 4, 5, 0, 5, 1))
    blocks = (*blocks[:2], blocks[2].replace(visible=VisibleRange(*(x[:, :1] for x in visible))))
    layout = Layout(blocks, None, None, None, None, num_slots=2)
    # keys: 2 slots | 3 items
    expected = [
        [1, 0, 1, 1, 0],
        [0, 1, 0, 0, 1],
        [0, 0, 1, 1, 0],  # items only
        [0, 0, 0, 0, 0],  # its item lies beyond the block's keys
        [1, 0, 0, 1, 0],  # leaves out the first item
    ]
    np.testing.assert_array_equal(interval_mask(layout_intervals(layout), 5)[0], expected)


def test_tiles_against_literal_masks():
    """Two tiles of two rows, tiles of two keys: slots 0 to 2 | items 3 to 7."""
    # rows: 1 1 1 | 1 1 0 0 0
    #       0 0 1 | 1 1 1 0 0
    #       0 0 0 | 0 0 0 1 1
    #       0 0 0 | 0 0 0 0 1
    intervals = jnp.array([[[0, 2, 0, 0], [3, 3, 0, 0], [3, 3, 6, 7], [5, 6, 8, 8]]], jnp.int32)
    # The first rows read tiles 0, 1 for slots (tile 1 holds item 3 too), then tile 2 for items.
    np.testing.assert_array_equal(visible_tiles(intervals, 2, 2)[0], [[0, 2, 2, 3], [0, 0, 3, 4]])


@pytest.mark.parametrize("name", small_layouts())
def test_intervals_are_the_mask_and_tiles_cover_it(name):
    layout = small_layouts()[name]()
    mask = whole_mask(layout)
    np.testing.assert_array_equal(interval_mask(layout_intervals(layout), mask.shape[2]), mask)
    check_tiles(layout_intervals(layout), mask, row_tile=3, key_tile=2)
    most = sum(
        (b.row_stop - b.row_start) * count_reachable_keys(b, layout.num_slots)
        for b in layout.blocks
    )
    assert mask.sum(axis=(1, 2)).max() <= most <= mask[0].size
    seen = np.asarray(visible_tiles(layout_intervals(layout), 3, 2))
    visits = (seen[..., 1] - seen[..., 0] + seen[..., 3] - seen[..., 2]).sum(axis=1)
    assert visits.max() <= count_reachable_tiles(layout, 3, 2)


def check_tiles(intervals, mask: np.ndarray, row_tile: int, key_tile: int) -> None:
    """Every visible pair lies in a tile that is visited, and none is visited twice."""
    seen = np.asarray(visible_tiles(intervals, row_tile, key_tile))
    for user, rows, keys in zip(*np.nonzero(mask), strict=True):
        a, b, c, d = seen[user, rows // row_tile]
        tile = keys // key_tile
        assert (a <= tile < b) or (c <= tile < d)
    assert np.all(seen[..., 0] <= seen[..., 1]) and np.all(seen[..., 2] <= seen[..., 3])
    assert np.all((seen[..., 1] <= seen[..., 2]) | (seen[..., 2] == seen[..., 3]))


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_tiles_of_random_intervals_cover_them(data):
    slots, keys, rows = 5, 17, 7
    visible = []
    for _ in range(rows):
        lo, hi = sorted(data.draw(st.tuples(*[st.integers(0, slots)] * 2)))
        item_lo, item_hi = sorted(data.draw(st.tuples(*[st.integers(slots, keys)] * 2)))
        visible.append((lo, hi, item_lo, item_hi))
    intervals = jnp.asarray(np.array(visible, np.int32).T[None])
    mask = interval_mask(intervals, keys)
    check_tiles(intervals, mask, row_tile=data.draw(st.integers(1, 8)), key_tile=4)


def test_a_join_biases_has_every_block_in_its_place():
    layout = small_layouts()["windowed reference"]()
    keys = layout.blocks[-1].row_stop
    table = np.random.default_rng(0).normal(size=(1, keys, keys)).astype(np.float32)
    mask = whole_mask(layout)[:1]
    biases = block_biases(layout, jnp.asarray(table))
    whole = np.asarray(join_biases(biases, layout, keys))
    np.testing.assert_array_equal(whole.transpose(0, 2, 1) * mask, table * mask)
