"""Blockwise top-k against a stable sort of all scores."""

from __future__ import annotations

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.nn.catalogue import topk

BLOCK = 2 * topk.RUN_ROWS  # so that small tables take many blocks


def sorted_all(scores: np.ndarray, k: int, first: int = 0):
    """The slow obvious one: [Q, V] -> (scores [Q, k], rows [Q, k]), lower rows first."""
    rows = first + np.argsort(-scores[:, first:], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def assert_equal(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.smoke
@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from([topk._SORTED_BLOCKS * BLOCK + 1, 2500, 18 * BLOCK, 3000]),
    k=st.sampled_from([1, 7, 20]),
    first=st.integers(0, 1),
    count=st.sampled_from([1, 2, 4]),  # up to 3 queries all logits are made at once
    rarity=st.sampled_from([0.9, 0.5, 0.1]),
    seed=st.integers(0, 99),
)
def test_ties_go_to_the_lower_row(rows, k, first, count, rarity, seed):
    """Whole numbers, high ones rare: products are exact and the k best hold groups of equals."""
    rng = np.random.default_rng(seed)
    table = rng.geometric(rarity, (rows, 2)).astype(np.float32)
    queries = rng.integers(-1, 2, (count, 2)).astype(np.float32)
    got = jax.jit(lambda q, t: topk.top_k(q, t, k, first=first, block=BLOCK))(queries, table)
    assert_equal(got, sorted_all(queries @ table.T, k, first))


@pytest.mark.parametrize("queries", [1, 5, 64])
def test_equal_to_sorting_all_scores_bit_for_bit(queries):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((70_001, 24), np.float32)
    vectors = rng.standard_normal((queries, 24), np.float32)

    def unit(rows):
        return rows / jnp.sqrt(jnp.sum(rows * rows, axis=-1, keepdims=True) + 1e-12)

    scores = np.asarray(jax.jit(lambda q, t: q @ unit(t).T)(vectors, table))
    got = jax.jit(lambda q, t: topk.top_k(q, t, 100, first=1, transform=unit))(vectors, table)
    assert_equal(got, sorted_all(scores, 100, first=1))


def test_memory_does_not_hold_the_logits():
    """10 million items, 64 queries: the logits would be 2.56 GB."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 64), (10_000_000, 64))]
    compiled = jax.jit(lambda q, t: topk.top_k(q, t, 100)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e8


def test_an_exported_program_takes_any_number_of_queries():
    rng = np.random.default_rng(2)
    table = rng.normal(size=(18 * BLOCK, 8)).astype(np.float32)
    shape = (*jax.export.symbolic_shape("b"), 8)
    run = jax.jit(lambda queries: topk.top_k(queries, jnp.asarray(table), 5, block=BLOCK))
    exported = jax.export.export(run)(jax.ShapeDtypeStruct(shape, jnp.float32))
    for count in (1, 3):
        queries = rng.normal(size=(count, 8)).astype(np.float32)
        _, rows = exported.call(queries)
        np.testing.assert_array_equal(rows, sorted_all(queries @ table.T, 5)[1])


def test_more_than_there_are():
    with pytest.raises(ValueError, match="between 1 and the 4 rows"):
        topk.top_k(jnp.zeros((1, 2)), jnp.zeros((5, 2)), 5, first=1)
