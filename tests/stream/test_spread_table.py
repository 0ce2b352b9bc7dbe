"""Bulk recommendations and rebuilt memories from a sharded table: those of the whole table."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.stream.bulk.run import BulkOptions, recommend_all
from rec2pm_jax.stream.bulk.users import DatasetUsers, StoreUsers
from rec2pm_jax.stream.load import make_recommender
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.plan import plan_search
from rec2pm_jax.stream.rebuild import rebuild
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.sharded import config_of, shard_table
from tests.helpers.stream import make_data, random_params

K = 6
CONFIG = config_of(
    data={"segment": 5, "recent": 2}, model={"use_times": True}, method={"exact_entries": 4}
)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("spread"))


@pytest.fixture(scope="module")
def models(dataset):
    """(devices -> recommender with the table over so many devices; 0: with the whole table)."""
    made = {}

    def model(devices):
        if devices not in made:
            method = make_method(CONFIG, dataset.num_items)
            params = random_params(method)
            if devices:
                table = shard_table(np.asarray(method.network.table(params)), devices)
                params = method.network.with_table(params, table)
            made[devices] = make_recommender(
                CONFIG, params, dataset, trained_items=dataset.num_items
            )
        return made[devices]

    return model


def rebuilt(model, dataset):
    store = MemoryStore()
    rebuild(model, dataset, store, EngineOptions(seen="events"))
    return store


@pytest.mark.parametrize("devices", [slow(1), slow(8)])
def test_memories_are_those_of_the_whole_table(dataset, models, devices):
    whole, spread = models(0), models(devices)
    assert spread.identity == whole.identity
    kept = []
    for model in (whole, spread):  # a store of one is a store of the other
        store = rebuilt(model, dataset)
        sources = StoreUsers(whole, store, now=0.0), StoreUsers(model, store, now=0.0)
        users = [source.take(source.names) for source in sources]
        assert [user.memory for user in users[0]] == [user.memory for user in users[1]]
        kept.append((users[0], sources[0].updater.stack_states(users[0])))
    (expected, states), (found, spread_states) = kept
    assert [user.pending for user in found] == [user.pending for user in expected]
    np.testing.assert_allclose(spread_states.memory, states.memory, atol=2e-5)
    for got, want in zip(spread_states.exact, states.exact, strict=True):
        np.testing.assert_array_equal(got, want)
    assert np.any(states.exact.items) and states.groups.any()


def bulk_rows(model, source, folder, filters, time):
    search = plan_search(model.catalogue, K, (), filters, time)
    options = BulkOptions(batch_size=2, users_per_file=99)
    recommend_all(source, ["nobody", *source.names], search, time, folder, {}, options)
    return pl.read_parquet(folder / "part-00000.parquet").rows()


@pytest.mark.parametrize(
    ("devices", "filters"),
    [
        slow(2, {}),
        (8, {"exclude_seen": {"days": 2}, "deny": ["i2"]}),
        slow(4, {"candidates": ["i4", "i9", "i2", "i7", "i3"], "exclude_seen": True}),
    ],
)
def test_rows_are_those_of_the_whole_table(dataset, models, tmp_path, devices, filters):
    time = dataset.time_origin + 4 * 86_400
    rows = []
    for number in (0, devices):
        source = DatasetUsers(models(number), one_pass=False, keeps_seen=True)
        rows.append(bulk_rows(models(number), source, tmp_path / str(number), filters, time))
    expected, found = rows
    assert [row[:4] for row in found] == [row[:4] for row in expected]
    scores = [[-1.0 if row[4] is None else row[4] for row in part] for part in rows]
    np.testing.assert_allclose(*scores, rtol=1e-4)
    assert len({row[2] for row in expected}) > 4


def test_the_table_is_not_copied(models):
    model = models(8)
    table, scored = model.method.network.table(model.params), model.scored_table
    places = [
        [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]
        for array in (table, scored)
    ]
    assert places[0] == places[1] and len(places[0]) == 8
