"""Rows of a sharded table: their places, and their initial values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.nn.catalogue.sharded_table import (
    SLICES,
    ids_to_rows,
    initial_rows,
    rows_to_ids,
    table_rows,
)


@settings(deadline=None, max_examples=30)
@given(items=st.integers(1, 40_000))
def test_rows_are_a_bijection_with_padding_first(items):
    rows = table_rows(items)
    assert rows % SLICES == 0 and rows - SLICES <= items < rows
    index = np.arange(rows, dtype=np.int32)
    places = ids_to_rows(index, rows)
    np.testing.assert_array_equal(np.sort(places), index)
    np.testing.assert_array_equal(rows_to_ids(places, rows), index)
    assert places[0] == 0


def test_rows_of_the_largest_catalogue_fit_int32():
    rows = table_rows(550_000_000)
    ids = jnp.array([0, 1, 549_999_999, 550_000_000], jnp.int32)
    expected = [int(i) % SLICES * 2531 % SLICES * (rows // SLICES) + int(i) // SLICES for i in ids]
    assert ids_to_rows(ids, rows).tolist() == expected
    assert rows_to_ids(ids_to_rows(ids, rows), rows).tolist() == ids.tolist()


@pytest.mark.parametrize("shards", [2, 4, 8, 64, 256])
@pytest.mark.parametrize("run", [(1, 1000), (5000, 5999), (8000, 8099)])
def test_runs_of_ids_are_spread_evenly(shards, run):
    """Ids go by popularity: any run of them asks all devices for nearly the same number of rows."""
    rows = table_rows(100_000)
    ids = np.arange(run[0], run[1] + 1)
    per_shard = np.bincount(ids_to_rows(ids, rows) // (rows // shards), minlength=shards)
    assert per_shard.max() - per_shard.min() <= 3


def test_initial_rows_do_not_depend_on_the_cut():
    ids = jnp.arange(64, dtype=jnp.int32)
    whole, part = (initial_rows(jax.random.key(3), part, 8) for part in (ids, ids[48:]))
    np.testing.assert_array_equal(part, whole[48:])
    assert 0.01 < float(whole.std()) < 0.03
