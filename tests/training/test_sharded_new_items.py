"""A sharded table grows with its data: old rows stay as they are, new ones are the mean of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows, table_rows
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.nn.item_features import CONTENT
from rec2pm_jax.training.loop import train_on
from rec2pm_jax.training.new_items import (
    grow_items,
    grow_spread_items,
    grow_state,
    resize_abstract,
)
from rec2pm_jax.training.partition import make_partition
from rec2pm_jax.training.training_run import TrainingData
from tests.helpers.sharded import CONFIG, ITEMS, config_of
from tests.helpers.train_fakes import WINDOW, make_iterator

SMALL = config_of(CONFIG, data={"segments": 2}, method={"name": "recent"})
assert SMALL.data.window == WINDOW
MORE = 20_000  # items: two rows more in every slice


def partition_of(items: int, devices: int = 4):
    return make_partition(config_of(SMALL, compute={"devices": devices}), make_method(SMALL, items))


def by_id(state, items: int):
    """(table [V, D], accumulator [V]) in the order of ids."""
    rows = ids_to_rows(np.arange(items + 1), table_rows(items))
    table = np.asarray(state.params["embedding"]["item_embedding"])
    accumulator = np.asarray(state.opt_state["table"].accumulator)
    return table.reshape(len(accumulator), -1)[rows], accumulator[rows]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("stops", [(MORE,), (ITEMS + 1, 14_000, MORE)])
def test_old_rows_stay_and_new_ones_are_their_mean(devices, stops):
    """Also the rows that the table had before, but no item."""
    state = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), partition_of(ITEMS, devices).init())
    grown, before = state, ITEMS
    for items in stops:
        grown, before = grow_state(grown, make_method(SMALL, items), before), items
    partition = partition_of(MORE, devices)
    for have, want in zip(*map(jax.tree.leaves, (grown, partition.abstract)), strict=True):
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
        assert have.sharding.is_equivalent_to(want.sharding, have.ndim)
    table, accumulator = by_id(grown, MORE)
    old_table, old_accumulator = by_id(state, ITEMS)
    np.testing.assert_array_equal(table[: ITEMS + 1], old_table)
    np.testing.assert_array_equal(accumulator[: ITEMS + 1], old_accumulator)
    mean = np.broadcast_to(old_table[1:].mean(axis=0), table[ITEMS + 1 :].shape)
    np.testing.assert_allclose(table[ITEMS + 1 :], mean, rtol=1e-5)
    np.testing.assert_array_equal(accumulator[table_rows(ITEMS) :], 0)


@pytest.mark.parametrize("with_content", [False, True])
def test_a_whole_and_a_spread_table_serve_the_same_new_items(with_content):
    params, dim = partition_of(ITEMS).init().params, SMALL.model.dim
    content = {CONTENT: jnp.ones(1)} if with_content else {}
    table = params["embedding"][TABLE].reshape(-1, dim)
    rows = ids_to_rows(np.arange(ITEMS + 1), table_rows(ITEMS))
    whole = {"embedding": {TABLE: table[rows]}} | content
    for items in (ITEMS, ITEMS + 1, MORE):
        grown = grow_spread_items(params | content, items, ITEMS, dim)["embedding"][TABLE]
        found = grown.reshape(-1, dim)[ids_to_rows(np.arange(items + 1), table_rows(items))]
        expected = grow_items(whole, items)["embedding"][TABLE]
        np.testing.assert_array_equal(found[: ITEMS + 1], expected[: ITEMS + 1])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_a_run_continues_with_more_items_on_other_devices(tmp_path):
    """Through a checkpoint of 4 devices, read by 2: no row has changed before the first step."""

    def run(items, devices, steps, data, grown_from=()):
        train = {"steps": steps, "eval_every": 2, "checkpoint_every": 2}
        config = config_of(SMALL, train=train, compute={"devices": devices})
        method, seen = make_method(config, items), []

        def evaluate(params):
            seen.append(jax.device_get(params))
            return {"ndcg@10": 0.5}

        batches = make_iterator(CONFIG.train.batch_size)
        found = TrainingData(batches, data, grown_from=grown_from)
        train_on(config, found, method, tmp_path, evaluate)
        return seen

    before = run(ITEMS, 4, 2, "data")[-1]
    after, *_ = run(MORE, 2, 4, "grown", grown_from=("data",))  # validated at once
    rows = [ids_to_rows(np.arange(ITEMS + 1), table_rows(n)) for n in (ITEMS, MORE)]
    dim = SMALL.model.dim
    tables = [p["embedding"]["item_embedding"].reshape(-1, dim) for p in (before, after)]
    np.testing.assert_array_equal(tables[0][rows[0]], tables[1][rows[1]])


def test_the_shapes_before_are_those_of_the_run_before():
    for items in (MORE, ITEMS + 1):
        found = resize_abstract(partition_of(items).abstract, make_method(SMALL, items), ITEMS)
        assert found == partition_of(ITEMS).abstract
