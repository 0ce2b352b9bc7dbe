"""Rows of a pass by themselves: their masks as literal 0/1 matrices; keys and values in place."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rec2pm_jax.nn.attention import KeyValues, mask_of
from rec2pm_jax.nn.cache import InPlaceCache, Rows, rows_of
from tests.helpers.layers import SEES, SLOTS, make_layout


def test_rows_that_all_users_share_keep_their_masks():
    layout = rows_of(make_layout(), Rows(1, 3))
    [block] = layout.blocks
    assert (block.row_start, block.row_stop) == (1, 4)
    # keys: 2 slots | 4 items; rows: the second slot, the first two items
    expected = [[0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    np.testing.assert_array_equal(mask_of(block, SLOTS)[0], expected)
    np.testing.assert_array_equal(expected, SEES[1:4])


def test_rows_of_each_user_come_after_all_tokens_and_are_not_seen():
    layout = rows_of(make_layout(), Rows(jnp.array([0, 4], jnp.int32), 2))
    [block] = layout.blocks
    assert (block.row_start, block.row_stop, block.key_stop) == (6, 8, 6)
    # keys: 2 slots | 4 items
    first_user = [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    second_user = [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(mask_of(block, SLOTS), [first_user, second_user])
    # Places: 2 slots, 4 items, then those of the rows.
    np.testing.assert_array_equal(
        layout.place, [[0, 4, 0, 1, 2, 3, 0, 4], [0, 4, 0, 1, 2, 3, 2, 3]]
    )


def test_rows_are_written_into_the_cached_tokens():
    kept = jnp.arange(8, dtype=jnp.float32).reshape(2, 4, 1, 1)
    own = -1 - jnp.arange(4, dtype=jnp.float32).reshape(2, 2, 1, 1)
    cache = InPlaceCache(KeyValues(kept, kept), jnp.array([0, 2], jnp.int32))
    keys, values = cache.before(KeyValues(own, 10 * own))
    np.testing.assert_array_equal(
        keys[:, :, 0, 0], [[-1, -2, 2, 3, -1, -2], [4, 5, -3, -4, -3, -4]]
    )
    np.testing.assert_array_equal(values[:, 4:, 0, 0], [[-10, -20], [-30, -40]])
