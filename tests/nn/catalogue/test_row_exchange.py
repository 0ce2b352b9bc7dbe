"""Devices exchange rows of a sharded table, against indexing of the whole table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from rec2pm_jax.nn.catalogue import row_exchange
from rec2pm_jax.nn.catalogue.row_exchange import (
    bucket_capacity,
    fetch,
    plan_exchange,
    return_gradients,
)
from rec2pm_jax.nn.catalogue.sharded_table import add_to_rows, packed_shape
from rec2pm_jax.training.partition import AXIS, make_mesh


def exchanged(table, asked, gradients, capacity):
    """Fetches `asked` int32 [n, M] and returns `gradients` [n, M, D] of the fetched rows."""
    shards, count = asked.shape
    rows, dim = table.shape
    table = table.reshape(packed_shape(rows, dim))

    def body(table, asked, gradients):
        plan, places = plan_exchange(asked[0], rows, shards, capacity, AXIS)
        fetched = fetch(table, plan, count, dim, AXIS)
        index, summed = return_gradients(gradients[0], plan, rows // shards, AXIS)
        total = add_to_rows(jnp.zeros_like(table), index, summed)
        return fetched[None], places[None], total, plan.needed[None]

    spec = P(AXIS)
    mapped = jax.shard_map(
        body, mesh=make_mesh(jax.devices()[:shards]), in_specs=spec, out_specs=spec, check_vma=False
    )
    fetched, places, total, needed = jax.device_get(jax.jit(mapped)(table, asked, gradients))
    return fetched, places, total.reshape(rows, dim), needed


@settings(deadline=None, max_examples=15)
@given(
    size=st.sampled_from([(1, 16), (2, 130), (8, 48)]),
    seed=st.integers(0, 1000),
    spread=st.integers(1, 64),
)
def test_fetches_rows_and_returns_sums(size, seed, spread):
    """Against indexing: doubles, rows that many ask for, devices that are not asked at all."""
    (shards, dim), rng = size, np.random.default_rng(seed)
    table = rng.normal(size=(64, dim)).astype(np.float32)
    asked = rng.integers(0, spread, (shards, 20)).astype(np.int32)
    gradients = rng.normal(size=(shards, 20, dim)).astype(np.float32)
    fetched, places, total, needed = exchanged(table, asked, gradients, capacity=20)
    expected = np.zeros_like(table)
    for device in range(shards):
        np.testing.assert_array_equal(fetched[device][places[device]], table[asked[device]])
        unique = np.unique(asked[device])
        np.testing.assert_array_equal(fetched[device][len(unique) :], 0)
        np.add.at(expected, unique, gradients[device, : len(unique)])
        counts = np.bincount(unique // (64 // shards))
        assert needed[device] == counts.max()
    np.testing.assert_allclose(total, expected, atol=1e-5)


@pytest.mark.parametrize("most_peers", [1, 2, 4])
def test_many_devices_swap_in_two_steps(most_peers, monkeypatch):
    """Groups of 2 and 4 among 8 devices, against a transposition."""
    monkeypatch.setattr(row_exchange, "MAX_PEERS", most_peers)
    shards = 2 * most_peers if most_peers > 1 else 8
    sent = np.arange(shards * shards * 3).reshape(shards * shards, 3)
    mapped = jax.shard_map(
        lambda x: row_exchange.all_to_all(x, AXIS),
        mesh=make_mesh(jax.devices()[:shards]),
        in_specs=P(AXIS),
        out_specs=P(AXIS),
    )
    received = np.asarray(jax.jit(mapped)(sent)).reshape(shards, shards, 3)
    np.testing.assert_array_equal(received, sent.reshape(shards, shards, 3).swapaxes(0, 1))


def test_capacity_holds_random_demand():
    rng = np.random.default_rng(0)
    for shards in (2, 16, 256):
        demand = [np.bincount(rng.integers(0, shards, 12_000)).max() for _ in range(300)]
        assert max(demand) <= bucket_capacity(12_000, shards)
    assert bucket_capacity(500, 1) == 500
