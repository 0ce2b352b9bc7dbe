"""Training over a sharded item table: the same on any number of devices, and as on a whole table."""

from __future__ import annotations

import functools
import math
import re

import jax
import numpy as np
import optax
import pytest

from rec2pm_jax.config_dict import from_dict, to_dict
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.row_exchange import bucket_capacity
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows, table_rows
from rec2pm_jax.training import optimizer
from rec2pm_jax.training import partition as partition_lib
from rec2pm_jax.training.sharded_step import draw_negatives
from rec2pm_jax.training.step import step_rng
from rec2pm_jax.training.step_check import check_step
from tests.helpers.sharded import CONFIG, ITEMS, batches, by_id, config_of, train, train_whole


@pytest.fixture(autouse=True)
def _sgd(monkeypatch):
    """Adam divides tiny gradients by their own size, so that rounding grows; SGD does not."""
    monkeypatch.setattr(partition_lib, "make_dense_optimizer", lambda *_: optax.sgd(0.05))


@functools.cache
def trained(name="rec2pm", devices=8, accumulate=1):
    compute = {"devices": devices, "accumulate": accumulate}
    return train(config_of(compute=compute, method={"name": name}))


def assert_same(got, want, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), got, want)


@pytest.mark.parametrize(
    ("name", "devices", "accumulate"),
    [
        pytest.param("recent", 1, 1, marks=pytest.mark.slow),
        *(
            pytest.param("rec2pm", n, a, marks=pytest.mark.slow)
            for n, a in [(1, 1), (2, 1), (4, 2)]
        ),
    ],
)
def test_devices_change_nothing(name, devices, accumulate):
    """Losses, parameters and the table's optimizer after 20 steps, against 8 devices."""
    state, log = trained(name, devices, accumulate)
    expected_state, expected_log = trained(name)
    assert int(state.step) == 20
    assert_same(state, expected_state)
    for got, want in zip(log, expected_log, strict=True):
        for metric in want.keys() - {"bucket_rows", "bucket_capacity"}:
            np.testing.assert_allclose(
                got[metric], want[metric], rtol=1e-6, atol=1e-5, err_msg=metric
            )
        assert got["fits"] == 1


def test_equals_training_on_a_whole_table(monkeypatch):
    """Against plain autodiff over [V, D] with the dense form of row-wise Adagrad."""
    monkeypatch.setattr(optimizer, "make_dense_optimizer", lambda *_: optax.sgd(0.05))
    config = config_of()
    state, log = trained()
    initial = by_id(jax.device_get(partition_of(config).init()).params, config)
    params, losses = train_whole(config, initial, 20)
    np.testing.assert_allclose([row["loss/total"] for row in log], losses, atol=2e-5)
    assert_same(by_id(state.params, config), params)
    # It has moved, by much more than the tolerance.
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, initial)
    assert all(distance > 1e-3 for distance in jax.tree.leaves(moved["embedding"]))


def partition_of(config):
    return partition_lib.make_partition(config, make_method(config, ITEMS))


def test_a_step_changes_the_rows_it_looked_up_and_no_other():
    partition = partition_of(config_of(compute={"devices": 8}))
    before = jax.device_get(partition.init())
    batch = next(batches(CONFIG, 1))
    after = jax.device_get(partition.step(partition.init(), batch)[0])
    table = [by_id(state.params)["embedding"]["item_embedding"] for state in (before, after)]
    changed = np.flatnonzero((table[0] != table[1]).any(axis=1))
    used = np.unique(batch["ids"])
    assert len(np.setdiff1d(changed, used)) <= CONFIG.loss.negatives
    assert len(np.intersect1d(changed, used)) >= len(used) - 2  # all but padding, and a last event
    assert 0 not in changed
    assert (after.opt_state["table"].accumulator > 0).sum() == len(changed)


def test_collectives_carry_what_one_device_needs(monkeypatch):
    """Three all-to-alls (requests, rows, gradients) of n buckets, and sums of dense parameters."""
    method = make_method(CONFIG, ITEMS)
    program = partition_lib.make_program(CONFIG, method, partition_lib.make_mesh())
    compiled = program.step.lower(program.state, program.batch).compile()
    sizes = {"all-to-all": [], "all-reduce": []}
    pattern = r"= (.*?) (all-\w+(?:-\w+)?|reduce-scatter|collective-permute)(?:-start)?\("
    for shapes, kind in re.findall(pattern, compiled.as_text()):
        dims = re.findall(r"[a-z]\d+\[([\d,]*)\]", shapes)
        sizes[kind] += [sum(math.prod(int(n) for n in d.split(",") if n) for d in dims)]
    rows = CONFIG.train.batch_size // 8 * (CONFIG.data.window + 1) + CONFIG.loss.negatives + 1
    bucket = bucket_capacity(rows, 8)
    dim = CONFIG.model.dim
    assert sorted(sizes["all-to-all"]) == [8 * bucket, 8 * bucket * dim, 8 * bucket * dim]
    dense = sum(p.size for p in jax.tree.leaves(jax.eval_shape(method.init, jax.random.key(0))))
    assert sum(sizes["all-reduce"]) < dense - (ITEMS + 1) * dim + 100


def test_an_overflowing_bucket_stops_and_names_what_it_needs():
    config = config_of(compute={"devices": 8, "bucket_rows": 8}, method={"name": "recent"})
    partition = partition_of(config)
    before = jax.device_get(partition.init())
    batch = next(batches(config, 1))
    after, metrics = partition.step(partition.init(), batch)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), before)
    assert metrics["fits"] == 0

    rows = table_rows(ITEMS)
    shared = np.append(0, draw_negatives(step_rng(0, 0), config.loss.negatives, ITEMS))
    asked = [np.unique(np.append(shared, ids)) for ids in np.split(batch["ids"], 8)]
    needed = max(int(np.bincount(ids_to_rows(ids, rows) // (rows // 8)).max()) for ids in asked)
    assert int(metrics["bucket_rows"]) == needed > 8
    with pytest.raises(UserError, match=f"for {needed} rows.*--config.compute.bucket_rows="):
        check_step(1, {name: float(value) for name, value in metrics.items()})


@pytest.mark.parametrize(
    "change",
    [
        {"loss": {"negatives": None}},
        {"loss": {"sharing": "per_position"}},
        {"optim": {"table_learning_rate": None}},
        {"train": {"partition": "pmap"}},
    ],
)
def test_what_needs_the_whole_catalogue_is_refused(change):
    values = to_dict(CONFIG)
    [(section, fields)] = change.items()
    values[section] |= fields
    [field] = fields
    with pytest.raises(UserError, match=f"sharded needs config.{section}.{field}[=,]"):
        from_dict(values)


def test_devices_that_do_not_divide_the_table_are_refused():
    config = config_of(train={"batch_size": 15}, compute={"devices": 3})
    with pytest.raises(UserError, match="must divide 256 where an item has 8 numbers"):
        partition_of(config)
