"""Requests and updates over a sharded table: as with the whole table on one device."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.methods.sharded_serving import ShardedServing
from rec2pm_jax.training.partition import AXIS, partition_specs
from rec2pm_jax.typing import Events
from tests.helpers.methods import large_parameters
from tests.helpers.sharded import config_of, shard_table

ITEMS, USERS, K = 5000, 16, 7


def over_devices(function, params, *arguments, results):
    """`function` on the devices that hold the table, users divided over them."""
    mesh = params["embedding"]["item_embedding"].sharding.mesh
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(partition_specs({"params": params})["params"], *[P(AXIS)] * len(arguments)),
        out_specs=results,
        check_vma=False,
    )
    return jax.device_get(jax.jit(mapped)(params, *arguments))


@pytest.fixture(scope="module")
def users():
    """Popular and rare items, one user with a single event."""
    rng = np.random.default_rng(0)

    def some(length):
        ids = np.minimum(rng.zipf(1.2, (USERS, length)), ITEMS).astype(np.int32)
        valid = np.arange(length) < rng.integers(1, length + 1, USERS)[:, None]
        return Events(jnp.asarray(np.where(valid, ids, 0))), jnp.asarray(valid)

    return some


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    ("name", "sketch"),
    [("rec2pm", 0), pytest.param("rec2pm", 2, marks=pytest.mark.slow), ("kv_mask", 0)],
)
def test_updates_and_requests_are_those_of_the_whole_table(users, devices, name, sketch):
    fields = {"name": name, "sketch": sketch}
    config = config_of(model={"dim": 6, "layers": 2}, method=fields)
    method = make_method(config, ITEMS)
    params = large_parameters(method)
    table = np.asarray(method.network.table(params))
    spread = method.network.with_table(params, shard_table(table, devices))
    state = method.init_state(params, USERS)
    old, new = users(config.data.segment), users(method.read_length)

    kept = P(AXIS), P()
    updating = ShardedServing(config, ITEMS, AXIS).update
    updated, needed = over_devices(updating, spread, state, *old, None, results=kept)
    expected = method.update(params, state, *old)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), updated, expected)
    asked = 1 + old[0].ids.size // devices  # padding, and the events
    assert 1 <= needed <= asked

    reading = partial(ShardedServing(config, ITEMS, AXIS).read_best, K)
    kept = P(AXIS), P(AXIS), P()
    scores, ids, _ = over_devices(reading, spread, expected, *new, None, results=kept)
    best, items = method.best(params, method.read(params, expected, *new), K)
    np.testing.assert_allclose(scores, best, rtol=1e-4)
    np.testing.assert_array_equal(ids, items)


def test_an_overflow_is_no_wrong_answer(users):
    config = config_of(model={"dim": 8}, compute={"bucket_rows": 1})
    method = make_method(config, ITEMS)
    params = large_parameters(method)
    table = np.asarray(method.network.table(params))
    spread = method.network.with_table(params, shard_table(table, 4))
    events, valid = users(config.data.segment)
    state = method.init_state(params, USERS)
    updating = ShardedServing(config, ITEMS, AXIS).update
    updated, needed = over_devices(
        updating, spread, state, events, valid, None, results=(P(AXIS), P())
    )
    assert needed > 1
    jax.tree.map(np.testing.assert_array_equal, updated, state)
    reading = partial(ShardedServing(config, ITEMS, AXIS).read_best, K)
    scores, _, needed = over_devices(
        reading, spread, state, events, valid, None, results=(P(AXIS), P(AXIS), P())
    )
    assert needed > 1 and np.isnan(scores).all()
