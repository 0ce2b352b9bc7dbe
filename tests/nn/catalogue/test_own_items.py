"""Addends of own items against dense formulas: in logits, in the best items, in all losses."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.config import LossConfig
from rec2pm_jax.nn.catalogue import chunked_sums, losses
from rec2pm_jax.nn.catalogue.losses import Positions
from rec2pm_jax.nn.catalogue.own_items import (
    add_own,
    addend_of,
    are_own,
    combine_own,
    merge_own,
)
from rec2pm_jax.typing import OwnItems

ITEMS, WIDTH, T, J = 17, 4, 23, 6
KEY = jax.random.key(5)


def dense(own, num_items=ITEMS):
    """What each item gets: [..., V], traceable; padding gets nothing."""
    ids = own.ids if own.ids.ndim == own.addends.ndim else own.ids[:, None]
    at = ids[..., None] == jnp.arange(num_items + 1)
    added = jnp.sum(jnp.where(at, own.addends[..., None], 0), axis=-2)
    return added.at[..., 0].set(0)


own_items = st.lists(st.tuples(st.integers(0, 7), st.integers(-8, 8)), min_size=4, max_size=4).map(
    lambda rows: OwnItems(
        np.array([[item for item, _ in rows]], np.int32),
        np.array([[addend for _, addend in rows]], np.float32) / 4,
    )
)


@pytest.mark.smoke
@settings(max_examples=60, deadline=None)
@given(own=own_items)
def test_addends_of_equal_items_add_up(own):
    """Numbers of quarters add up exactly."""
    expected = np.asarray(dense(own, 7))
    np.testing.assert_array_equal(add_own(jnp.zeros((1, 7)), own, first=1), expected[:, 1:])
    np.testing.assert_array_equal(add_own(jnp.zeros((1, 3)), own, first=4), expected[:, 4:7])
    combined = combine_own(own)
    np.testing.assert_array_equal(dense(combined, 7), expected)
    real = np.asarray(combined.ids)[np.asarray(combined.ids) > 0]
    assert sorted(real) == sorted(set(own.ids[own.ids > 0]))
    items = jnp.arange(1, 8, dtype=jnp.int32)
    alone = jax.tree.map(lambda a: jnp.broadcast_to(a, (7, 4)), own)
    np.testing.assert_array_equal(addend_of(alone, items), expected[0, 1:])


def test_rows_that_share_items_are_combined_each_for_itself():
    rng = np.random.default_rng(0)
    own = OwnItems(
        rng.integers(0, 4, (2, J)).astype(np.int32), rng.normal(size=(2, 3, J)).astype(np.float32)
    )
    np.testing.assert_allclose(dense(combine_own(own)), dense(own), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(own=own_items, scores=st.permutations(range(7)), k=st.integers(1, 3), data=st.data())
def test_the_best_are_merged_exactly(own, scores, k, data):
    """With as many more candidates as there are own items, and equal scores: the lower id first."""
    scores = np.array([0, *scores], np.float32) // data.draw(st.sampled_from([1, 2]))
    total = (scores + np.asarray(dense(own, 7))[0])[1:]
    expected = 1 + np.argsort(-total, kind="stable")[:k]
    found = 1 + np.argsort(-scores[1:], kind="stable")[: min(7, k + 4)]
    merged, ids = merge_own(
        jnp.asarray(scores[found])[None],
        jnp.asarray(found, jnp.int32)[None],
        own,
        jnp.asarray(scores[own.ids]),
        k,
    )
    np.testing.assert_array_equal(ids[0], expected)
    np.testing.assert_array_equal(merged[0], total[expected - 1])


# --- losses ---


def positions(distinct):
    """Vectors, table, targets, weights and own items, of which the first is often the target."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(0, 1, (T, WIDTH)).astype(np.float32)
    table = rng.normal(0, 1, (ITEMS + 1, WIDTH)).astype(np.float32)
    weights = rng.choice([0, 1, 2.5], T).astype(np.float32)
    targets = rng.integers(1, ITEMS + 1, T).astype(np.int32)
    ids = rng.integers(0, ITEMS + 1, (T, J)).astype(np.int32)
    ids[:, 2] = ids[:, 1]
    ids[::2, 0] = targets[::2]
    addends = rng.normal(0, 1, (T, J)).astype(np.float32)
    own = OwnItems(ids, addends)
    if distinct:
        own = OwnItems(*map(np.asarray, combine_own(own)))
    assert np.any(ids == targets[:, None], axis=1).sum() > T // 2
    return vectors, table, own, targets, weights


def count_candidates(config, own, targets):
    """How often each item takes part [T, V]: all once, or what was drawn, the target and own items."""
    counts = np.ones((T, ITEMS + 1), np.float32)
    if config.negatives:
        numbers = np.arange(T, dtype=np.int32)
        drawn = np.asarray(losses.sample_negatives(config, ITEMS, KEY, numbers))
        drawn = np.broadcast_to(drawn, (T, config.negatives))
        assert np.any(drawn[:, :, None] == own.ids[:, None])
        assert np.any(drawn == targets[:, None])
        counts[:] = 0
        for t in range(T):
            np.add.at(counts[t], drawn[t], 1)
            counts[t, own.ids[t]] = 1
            counts[t, targets[t]] = 1
    counts[:, 0] = 0
    return counts


def literal_loss(config, counts, vectors, table, own, targets, weights):
    """Written out over all items."""

    def unit(x):
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)

    logits = unit(vectors) @ unit(table).T / config.temperature + dense(own)
    total = jnp.log(jnp.sum(counts * jnp.exp(logits), axis=1))
    return jnp.sum(weights * (total - jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]))


HOW = {
    "full": {},
    "split catalogue": {},
    "shared": dict(negatives=9),
    "per position": dict(negatives=9, sharing="per_position"),
}


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_losses_and_gradients_are_the_formula(how, chunks, monkeypatch):
    """Gradients with respect to vectors, table and addends."""
    config = LossConfig(temperature=0.5, **HOW[how])
    vectors, table, own, targets, weights = positions(distinct=bool(config.negatives))
    counts = count_candidates(config, own, targets)
    if how == "split catalogue":
        monkeypatch.setattr(losses, "MANY_ITEMS", 5)
        monkeypatch.setattr(chunked_sums, "MIN_BLOCK_ITEMS", 5 if chunks else 32)
    if chunks:
        monkeypatch.setattr(losses, "MIN_CHUNK", 4)
        monkeypatch.setattr(chunked_sums, "BLOCK_ROWS", 4)

    def loss(vectors, table, addends):
        at = Positions(
            vectors, targets, weights, np.arange(T, dtype=np.int32), OwnItems(own.ids, addends)
        )
        size = 1 if chunks else 1 << 21
        return 3 * losses.next_item_loss(config, table, at, KEY, size)[0]

    def literal(vectors, table, addends):
        own_items = OwnItems(own.ids, addends)
        return 3 * literal_loss(config, counts, vectors, table, own_items, targets, weights)

    arguments = vectors, table, own.addends
    got, expected = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arguments) for f in (loss, literal))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, expected)
    assert np.any(expected[1][2][:, 0])  # the addend of a target has a gradient


def test_a_negative_that_is_own_counts_once(monkeypatch):
    """All negatives are one own item; with the target they make a softmax over two items."""
    monkeypatch.setattr(losses, "sample_negatives", lambda *_: jnp.full(9, 5, jnp.int32))
    config = LossConfig(negatives=9, temperature=0.5)
    own = OwnItems(np.array([[5, 0]], np.int32), np.array([[1.5, 9.0]], np.float32))
    at = Positions(
        np.ones((1, WIDTH), np.float32),
        np.array([3], np.int32),
        np.ones(1, np.float32),
        np.zeros(1, np.int32),
        own,
    )
    table = np.ones((ITEMS + 1, WIDTH), np.float32)
    total, _ = losses.next_item_loss(config, table, at, KEY, 1 << 20)
    np.testing.assert_allclose(total, np.log(1 + np.exp(1.5)), rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_negatives_are_compared_with_what_each_position_counts(shared):
    """Three users of four positions; padding among the own items, which no negative is."""
    rng = np.random.default_rng(3)
    own_ids = np.stack([rng.permutation(9)[:5] for _ in range(3)]).astype(np.int32)
    counted = (rng.random((12, 5)) < 0.6) & (np.repeat(own_ids, 4, axis=0) > 0)
    items = rng.integers(1, 12, 6 if shared else (12, 6), dtype=np.int32)
    expected = np.zeros((12, 6), bool)
    for t, r in np.ndindex(12, 6):
        item = items[r] if shared else items[t, r]
        expected[t, r] = item in own_ids[t // 4][counted[t]]
    np.testing.assert_array_equal(are_own(items, own_ids, counted), expected)
    assert 5 < expected.sum() < 60
