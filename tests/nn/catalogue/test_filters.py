"""Filters inside top-k, on every path, against a slow ranking of all scores."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rec2pm_jax.nn.catalogue import topk
from rec2pm_jax.nn.catalogue.filters import ItemFilter, is_denied, rank_candidates
from rec2pm_jax.nn.catalogue.sharded_scoring import sharded_top_k, top_k_per_device
from rec2pm_jax.training.partition import AXIS
from rec2pm_jax.typing import OwnItems
from tests.helpers.sharded import shard_table

BLOCK = 2 * topk.RUN_ROWS
PATHS = {"sorted": (500, 3), "runs": (18 * BLOCK + 5, 2), "blocks": (18 * BLOCK + 5, 9)}


def allowed_items(rule: ItemFilter, query: int, count: int) -> list[int]:
    """The slow obvious rule, item by item."""
    denied = set() if rule.denied is None else set(np.asarray(rule.denied)[query].tolist())
    items = range(1, count) if rule.candidates is None else np.asarray(rule.candidates)[query]
    return [
        int(i)
        for i in items
        if i and i not in denied and (rule.blocked is None or not rule.blocked[i])
    ]


def slow_ranking(scores: np.ndarray, rule: ItemFilter, k: int) -> list[list[int]]:
    """[Q, V] -> the best allowed items of each query, the lower id first if scores are equal."""
    return [
        sorted(allowed_items(rule, q, scores.shape[1]), key=lambda i: (-row[i], i))[:k]
        for q, row in enumerate(scores)
    ]


def answers(scores, ids) -> list[list[int]]:
    """What a caller shows: the items that do not score -inf."""
    return [
        row[np.isfinite(s)].tolist()
        for s, row in zip(np.asarray(scores), np.asarray(ids), strict=True)
    ]


def draw(items: int, queries: int, seed: int = 0):
    """Whole numbers with many ties; each query denies its best items, others and repeated ones."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-4, 5, (items, 3)).astype(np.float32)
    vectors = rng.integers(-3, 4, (queries, 3)).astype(np.float32)
    best = np.argsort(-(vectors @ table.T), axis=1)[:, :6]
    denied = np.concatenate([best, rng.integers(0, items, (queries, 5)), best[:, :1]], axis=1)
    denied[0] = 0  # one query denies nothing
    blocked = rng.random(items) < 0.3
    return table, vectors, denied.astype(np.int32), blocked


@partial(jax.jit, static_argnums=3)
def search(vectors, table, rule, k):
    allowed = rule.allows if rule.blocked is not None else None
    return topk.top_k(vectors, table, k, first=1, allowed=allowed, block=BLOCK, denied=rule.denied)


@pytest.mark.smoke
@pytest.mark.parametrize("path", PATHS)
def test_top_k_leaves_out_what_the_filter_does_and_nothing_else(path):
    items, queries = PATHS[path]
    table, vectors, denied, blocked = draw(items, queries)

    for rule in (ItemFilter(denied), ItemFilter(None, blocked), ItemFilter(denied, blocked)):
        found = search(vectors, table, rule, 20)
        assert answers(*found) == slow_ranking(vectors @ table.T, rule, 20)


@pytest.mark.parametrize("path", PATHS)
def test_fewer_than_k_are_left(path):
    items, queries = PATHS[path]
    table, vectors, _, _ = draw(items, queries)
    blocked = np.ones(items, bool)
    blocked[-3:] = False
    denied = np.full((queries, 1), items - 2, np.int32)
    rule = ItemFilter(denied, blocked)
    found = search(vectors, table, rule, 5)
    assert answers(*found) == slow_ranking(vectors @ table.T, rule, 5)
    assert set(map(len, answers(*found))) == {2}


def test_candidates_are_scored_with_their_addends_and_in_order():
    table, vectors, denied, blocked = draw(200, 4)
    rng = np.random.default_rng(1)
    candidates = np.stack([rng.permutation(199)[:15] + 1 for _ in vectors]).astype(np.int32)
    candidates[1, 7:] = 0
    own = OwnItems(candidates[:, [2, 2, 5]], rng.integers(1, 9, (4, 3)).astype(np.float32))
    scores = vectors @ table.T
    for query, (ids, addends) in enumerate(zip(*own, strict=True)):
        np.add.at(scores[query], ids, np.where(ids > 0, addends, 0))
    for rule in (ItemFilter(candidates=candidates), ItemFilter(denied, blocked, candidates)):
        rows = jnp.asarray(table[candidates])
        arguments = jax.tree.map(jnp.asarray, (rule, own))
        found = rank_candidates(jnp.asarray(vectors), rows, *arguments, 15)
        assert answers(*found) == slow_ranking(scores, rule, 15)


def over_devices(search, table, k, vectors, rule):
    """Search on the devices that hold the table; queries are divided over them, or the same."""
    each = P(AXIS) if search is top_k_per_device else P()

    def body(table, vectors, rule):
        items = 4999
        return search(vectors, table, k, items, lambda rows: rows, AXIS, rule)

    mapped = jax.shard_map(
        body,
        mesh=table.sharding.mesh,
        in_specs=(P(AXIS), each, ItemFilter(each, P(), each)),
        out_specs=(each, each),
        check_vma=False,
    )
    return jax.device_get(jax.jit(mapped)(table, vectors, rule))


@pytest.mark.parametrize(
    ("search", "devices"), [(sharded_top_k, 2), (top_k_per_device, 4)], ids=["same", "per device"]
)
def test_sharded_search_obeys_the_filter(search, devices):
    """Items of equal score come in any order there, so scores are no whole numbers."""
    items, queries, k = 5000, 8, 12
    rng = np.random.default_rng(2)
    table = rng.standard_normal((items, 6), np.float32)
    vectors = rng.standard_normal((queries, 6), np.float32)
    scores = vectors @ table.T
    denied = np.argsort(-scores, axis=1)[:, :9].astype(np.int32)
    denied[0] = 0
    blocked = rng.random(items) < 0.3
    candidates = np.stack([rng.permutation(items - 1)[:k] + 1 for _ in vectors]).astype(np.int32)
    candidates[:, :2] = denied[:, :2]
    candidates[2, 5:] = 0
    spread = shard_table(table, devices)
    for rule in (ItemFilter(denied, blocked), ItemFilter(denied, blocked, candidates)):
        found = over_devices(search, spread, k, vectors, rule)
        assert answers(*found) == slow_ranking(scores, rule, k)


def test_masks_of_columns():
    denied = jnp.array([[3, 0, 3], [9, 5, 1]])
    want = [[False, True, False], [False, False, False]]
    assert is_denied(denied, 3, first=2).tolist() == want
