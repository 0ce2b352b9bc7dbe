"""Evaluation over a sharded table: equal to ranking the whole catalogue on one device."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import LossConfig
from rec2pm_jax.evaluation import sharded_catalogue
from rec2pm_jax.evaluation.diagnostics import memory_diagnostics
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.metrics import target_ranks
from rec2pm_jax.evaluation.spec import EvalSpec, Measures
from rec2pm_jax.evaluation.validation import validate
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.losses import catalogue_logits, to_item_vectors
from rec2pm_jax.training.partition import local_replica
from rec2pm_jax.typing import OwnItems, Readout
from tests.helpers.data import make_dataset
from tests.helpers.methods import large_parameters
from tests.helpers.sharded import config_of, shard_table

ITEMS, DIM = 5000, 6
LOSS = LossConfig()


@pytest.fixture(scope="module")
def catalogue():
    """Item vectors with groups of equal ones, and queries."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ITEMS + 1, DIM)).astype(np.float32)
    table[100:120] = table[100]
    return table, rng.normal(size=(300, DIM)).astype(np.float32)


def all_logits(table, readout):
    item_vectors = to_item_vectors(jnp.asarray(table))
    return catalogue_logits(LOSS, readout, item_vectors)


@pytest.mark.parametrize(("devices", "with_own"), [(1, False), (8, False), (4, True)])
def test_ranks_and_best_items(catalogue, devices, with_own):
    table, queries = catalogue
    # Own items: twice the same, some of those that score alike, and padding.
    rng = np.random.default_rng(3)
    own_ids = np.where(rng.random((300, 6)) < 0.3, 0, rng.integers(90, 130, (300, 6)))
    own_ids[:, 1] = own_ids[:, 0]
    addends = rng.normal(0, 3, own_ids.shape).astype(np.float32)
    own = OwnItems(own_ids.astype(np.int32), addends) if with_own else None
    readout = Readout(queries, own)
    logits = np.asarray(all_logits(table, readout))
    targets = np.random.default_rng(1).integers(1, ITEMS + 1, len(queries)).astype(np.int32)
    targets[:20] = np.arange(100, 120)
    found = sharded_catalogue.ranks(LOSS, shard_table(table, devices), ITEMS, readout, targets)
    # Rounding may decide between scores that are equal in theory, and only there.
    own = logits[np.arange(len(targets)), targets][:, None]
    least, most = ((logits[:, 1:] >= own + e).sum(axis=1) for e in (1e-4, -1e-4))
    assert ((np.maximum(least, 1) <= found) & (found <= most)).all()
    assert (found == target_ranks(logits, targets)).mean() > 0.95
    if with_own:
        return
    assert (found[:20] >= 19).all()  # ties are pessimistic, or rounding breaks one of them

    scores, ids = sharded_catalogue.best(
        LOSS, shard_table(table, devices), ITEMS, Readout(queries[:9], None), 50
    )
    expected = np.sort(logits[:9], axis=1)[:, ::-1][:, :50]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(logits[:9], np.asarray(ids), 1), scores, rtol=1e-5
    )
    assert all(len(set(row)) == 50 for row in np.asarray(ids).tolist())
    with pytest.raises(ValueError, match="between 1 and the 5000 items"):
        sharded_catalogue.best(LOSS, shard_table(table, devices), ITEMS, readout, ITEMS + 1)


def test_a_score_that_is_not_finite_has_rank_zero(catalogue):
    table, queries = catalogue
    broken = table.copy()
    broken[777] = np.inf
    readout = Readout(queries[:3], None)
    found = sharded_catalogue.ranks(
        LOSS, shard_table(broken, 4), ITEMS, readout, np.array([1, 2, 777], np.int32)
    )
    assert found.tolist() == [0, 0, 0]


@pytest.mark.parametrize("count", [1, 5000])
def test_fetch_rows(catalogue, count):
    table, _ = catalogue
    ids = np.random.default_rng(2).integers(0, ITEMS + 1, count)
    np.testing.assert_array_equal(
        sharded_catalogue.fetch_rows(shard_table(table, 8), ids, DIM), table[ids]
    )


CONFIG = config_of(
    data={"segments": 2, "protocol": "leave_one_out"},
    model={"dim": 8, "use_times": True},
    method={"slots": 2, "exact_entries": 4},
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), [25, 40, 30, 12, 26, 33, 20, 28])


def whole_and_spread(dataset, devices, **sections):
    """(method, parameters with the whole table, the same with the table spread over devices)."""
    method = make_method(config_of(CONFIG, **sections), dataset.num_items)
    params = large_parameters(method)
    own = jax.tree.map(lambda weights: 10 * np.abs(weights), params["own_items"])
    params = params | {"own_items": own}  # own items get in between the best
    table = np.asarray(method.network.table(params))
    # As the training loop hands them over.
    spread = method.network.with_table(jax.device_put(params), shard_table(table, devices))
    return method, params, local_replica(spread)


@pytest.mark.parametrize("devices", [1, 8])
def test_validation_equals_evaluation_on_one_device(dataset, devices):
    method, params, spread = whole_and_spread(dataset, devices)
    whole = evaluate(method, params, dataset, EvalSpec("validation", swap=False)).metrics
    assert 0 < whole["mrr"] < 1
    assert validate(method, spread, dataset) == whole
    plain = make_method(config_of(method.config, model={"table": "whole"}), dataset.num_items)
    assert validate(plain, params, dataset) == whole


def assert_same_evaluation(got, expected):
    """Everything but the time it took, bit for bit."""
    for field in dataclasses.fields(expected):
        if field.name != "wall_s":
            a, b = getattr(got, field.name), getattr(expected, field.name)
            jax.tree.map(np.testing.assert_array_equal, a, b)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


MEASURES = Measures(cutoffs=(1, 5, 30), lists=True, slices=True)


@pytest.mark.parametrize(
    ("devices", "sections", "spec"),
    [
        (2, {"data": {"protocol": "genrec"}}, {"split": "validation"}),
        slow(1, {}, {}),
        slow(4, {"data": {"protocol": "last_basket"}}, {"memory_format": "int8"}),
        slow(8, {"data": {"protocol": "last_10"}}, {"request_time_known": False}),
        slow(8, {"method": {"name": "recent"}, "data": {"protocol": "genrec"}}, {}),
    ],
)
def test_an_evaluation_equals_that_of_the_whole_table(dataset, devices, sections, spec):
    """Ranks, swaps, lists, slices and statistics of memories, also where seen items are left out."""
    method, params, spread = whole_and_spread(dataset, devices, **sections)
    spec = EvalSpec(**{"split": "test", "measures": MEASURES} | spec)
    whole = evaluate(method, params, dataset, spec)
    assert len(set(whole.rank.tolist())) > 3
    assert_same_evaluation(evaluate(method, spread, dataset, spec), whole)


@pytest.mark.slow
def test_diagnostics_equal_those_of_the_whole_table(dataset):
    method, params, spread = whole_and_spread(dataset, 4)
    whole, got = (
        memory_diagnostics(method, p, dataset, EvalSpec("test")) for p in (params, spread)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)  # sums over fewer items
    jax.tree.map(close, got, whole)
