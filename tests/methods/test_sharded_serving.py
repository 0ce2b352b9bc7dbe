"""Requests and updates over a sharded table: as with the whole table on one device."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.methods.sharded_serving import ShardedServing
from rec2pm_jax.methods.windows import UNKNOWN_TIME
from rec2pm_jax.nn.catalogue.filters import ItemFilter
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
    """Popular and rare items, one user with a single event; each call is an hour later."""
    rng, calls = np.random.default_rng(0), itertools.count()

    def some(length):
        ids = np.minimum(rng.zipf(1.2, (USERS, length)), ITEMS).astype(np.int32)
        valid = np.arange(length) < rng.integers(1, length + 1, USERS)[:, None]
        times = rng.integers(0, 900, (USERS, length)).cumsum(axis=1) + 3600 * next(calls)
        fields = (np.where(valid, a, 0).astype(np.int32) for a in (ids, times))
        return Events(*map(jnp.asarray, fields)), jnp.asarray(valid)

    return some


@pytest.mark.parametrize(
    ("devices", "name", "times"),
    [
        pytest.param(1, "rec2pm", False, marks=pytest.mark.slow),
        (2, "rec2pm", True),
        pytest.param(4, "kv_mask", False, marks=pytest.mark.slow),
        (8, "recent", True),
    ],
)
def test_updates_and_requests_are_those_of_the_whole_table(users, devices, name, times):
    """A second update, of a table that is not empty, and a read after it; one request has no time."""
    fields = {"name": name, "exact_entries": 4}
    config = config_of(model={"dim": 6, "layers": 2, "use_times": times}, method=fields)
    method = make_method(config, ITEMS)
    params = large_parameters(method)
    own = jax.tree.map(lambda weights: 10 * np.abs(weights), params["own_items"])
    params = params | {"own_items": own}  # own items get in between the best of so many
    table = np.asarray(method.network.table(params))
    spread = method.network.with_table(params, shard_table(table, devices))
    first, old, new = map(users, [config.data.segment] * 2 + [method.read_length])
    update, read = jax.jit(method.update), jax.jit(method.read)
    state = update(params, method.init_state(params, USERS), *first)
    asked = None
    if times:
        asked = jnp.full(USERS, 10**5, jnp.int32).at[3].set(UNKNOWN_TIME)

    kept = P(AXIS), P()
    updating = ShardedServing(config, ITEMS, AXIS).update
    after = new[0].times[:, 0]
    updated, needed = over_devices(updating, spread, state, *old, after, results=kept)
    expected = update(params, state, *old, after)
    np.testing.assert_allclose(updated.memory, expected.memory, atol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, updated[1:], jax.device_get(expected[1:]))
    assert np.any(expected.exact.items)
    largest = 1 + (old[0].ids.size + state.exact.items.size) // devices  # padding too
    assert 1 <= needed <= largest

    reading = partial(ShardedServing(config, ITEMS, AXIS).read_best, K)
    kept = P(AXIS), P(AXIS), P()
    readout = read(params, expected, *new, asked)
    rule = ItemFilter(denied=method.best(params, readout, 2)[1])  # own items among them
    scores, ids, _ = over_devices(reading, spread, expected, *new, asked, rule, results=kept)
    best, items = method.best(params, readout, K, None, rule)
    plain = method.best(params, readout._replace(own=None), K, None, rule)[1]
    assert np.mean(np.any(items != plain, axis=1)) > 0.5
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
