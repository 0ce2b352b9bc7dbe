"""Catalogue losses against numpy formulas."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import ComputeConfig, LossConfig
from rec2pm_jax.nn.catalogue import chunked_sums, losses
from rec2pm_jax.nn.catalogue.losses import Positions, catalogue_logits, to_item_vectors, to_queries
from rec2pm_jax.typing import Readout


def loss_of(config, vectors, table, targets, weights, rng, numbers, chunk_bytes=1 << 21):
    positions = Positions(vectors, targets, weights, numbers)
    return losses.next_item_loss(config, table, positions, rng, chunk_bytes)


next_item_loss = jax.jit(loss_of, static_argnums=0)
sample_negatives = jax.jit(losses.sample_negatives, static_argnums=(0, 1))

T, V, D = 5, 7, 4  # positions, catalogue with padding, width
KEY = jax.random.key(5)
ROWS = np.arange(T, dtype=np.int32)
TARGETS = np.array([3, 1, 6, 3, 0], np.int32)  # the last one is padding
WEIGHTS = np.array([1, 1, 1, 1, 0], np.float32)


def arrays():
    """Vectors [T, D] and table [V, D]."""
    rng = np.random.default_rng(0)
    return (rng.normal(0, 1, shape).astype(np.float32) for shape in ((T, D), (V, D)))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def similarity(config, vectors, table):
    """[T, V] float64."""
    vectors, table = np.asarray(vectors, np.float64), np.asarray(table, np.float64)
    return unit(vectors) @ unit(table).T / config.temperature


def logsumexp(x):
    return np.log(np.sum(np.exp(x), axis=-1))


@pytest.mark.smoke
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_full_softmax_is_cross_entropy_over_real_items(temperature):
    config = LossConfig(temperature=temperature)
    vectors, table = arrays()
    logits = similarity(config, vectors, table)
    expected = sum(logsumexp(logits[t, 1:]) - logits[t, TARGETS[t]] for t in range(4))
    total, weight = next_item_loss(config, vectors, table, TARGETS, WEIGHTS, KEY, ROWS)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert weight == 4


def test_padding_has_no_logit_and_no_gradient():
    vectors, table = arrays()
    catalogue = to_item_vectors(table)
    logits = catalogue_logits(LossConfig(), Readout(vectors, None), catalogue)
    assert np.all(logits[:, 0] == -np.inf) and np.all(np.isfinite(logits[:, 1:]))
    np.testing.assert_allclose(
        logits[:, 1:], similarity(LossConfig(), vectors, table)[:, 1:], rtol=1e-4
    )
    for config in (LossConfig(), LossConfig(negatives=50)):
        gradient = jax.grad(
            lambda x, config=config: next_item_loss(
                config, vectors, x, TARGETS, WEIGHTS, KEY, ROWS
            )[0]
        )(table)
        assert not np.any(gradient[0]) and np.any(gradient[1:])


def test_negatives_are_uniform_over_the_catalogue_without_padding():
    ids = sample_negatives(LossConfig(negatives=400), V - 1, KEY, ROWS)
    assert ids.shape == (400,)
    probability = np.array([0, *[1 / 6] * 6])
    np.testing.assert_allclose(np.bincount(ids, minlength=V) / 400, probability, atol=0.1)


@pytest.mark.parametrize("sharing", ["shared", "per_position"])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_sampled_softmax_is_its_formula(sharing, temperature):
    config = LossConfig(negatives=6, sharing=sharing, temperature=temperature)
    vectors, table = arrays()
    ids = np.broadcast_to(sample_negatives(config, V - 1, KEY, ROWS), (T, 6))
    assert (ids == TARGETS[:, None]).any()  # there are accidental hits to mask
    logits = similarity(config, vectors, table)
    expected = 0.0
    for t in range(4):
        negatives = [logits[t, i] for i in ids[t] if i != TARGETS[t]]
        positive = logits[t, TARGETS[t]]
        expected += logsumexp(np.array([positive, *negatives])) - positive
    total, weight = next_item_loss(config, vectors, table, TARGETS, WEIGHTS, KEY, ROWS)
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    assert weight == 4


def test_negatives_per_position_do_not_depend_on_the_batch():
    config = LossConfig(negatives=6, sharing="per_position")
    ids = sample_negatives(config, V - 1, KEY, ROWS)
    part = sample_negatives(config, V - 1, KEY, ROWS[2:4])
    np.testing.assert_array_equal(part, ids[2:4])
    assert len(np.unique(ids, axis=0)) > 1


def test_the_whole_catalogue_as_negatives_is_the_full_softmax(monkeypatch):
    everything = jnp.arange(1, V, dtype=jnp.int32)
    monkeypatch.setattr("rec2pm_jax.nn.catalogue.losses.sample_negatives", lambda *args: everything)
    data = (*arrays(), TARGETS, WEIGHTS, KEY, ROWS)
    config = LossConfig(negatives=V - 1)
    sampled = loss_of(config, *data)
    full = next_item_loss(LossConfig(), *data)
    np.testing.assert_allclose(sampled[0], full[0], rtol=1e-6)


def test_only_accidental_hits_leave_the_positive_alone(monkeypatch):
    """All negatives are the target: the loss is 0 and its gradient finite."""
    config = LossConfig(negatives=3)
    hits = jnp.full(3, 2, jnp.int32)
    monkeypatch.setattr("rec2pm_jax.nn.catalogue.losses.sample_negatives", lambda *args: hits)
    vectors, table = arrays()
    targets, weights = np.full(T, 2, np.int32), np.ones(T, np.float32)
    value, gradient = jax.value_and_grad(
        lambda v: loss_of(config, v, table, targets, weights, KEY, ROWS)[0]
    )(vectors)
    assert value == 0 and np.all(np.isfinite(gradient))


def test_zero_vectors_are_normalised_without_nan():
    config = LossConfig()
    _, table = arrays()
    gradient = jax.grad(lambda v: next_item_loss(config, v, table, TARGETS, WEIGHTS, KEY, ROWS)[0])(
        jnp.zeros((T, D))
    )
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("norm", [1e-2, 1e-4, 1e-6])
def test_small_vectors_are_normalised_with_epsilon_1e_12(norm):
    """At a norm of 1e-6 the epsilon halves the squared length; at 1e-4 and above it does not show."""
    x = norm * np.array([[0.6, -0.8, 0.0], [0.0, 0.0, 1.0]])
    expected = x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-12)
    config, single = LossConfig(temperature=0.5), jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(to_item_vectors(single), expected, rtol=1e-5)
    np.testing.assert_allclose(to_queries(config, single), expected / 0.5, rtol=1e-5)
    length = np.linalg.norm(to_item_vectors(single), axis=-1)
    np.testing.assert_allclose(length, 0.5**0.5 if norm == 1e-6 else 1.0, rtol=1e-4)


def many(positions=23, items=17):
    """Vectors, table, targets, weights (a third of them 0) of some size."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(0, 1, (positions, D)).astype(np.float32)
    table = rng.normal(0, 1, (items + 1, D)).astype(np.float32)
    weights = rng.choice([0, 1, 2.5], positions).astype(np.float32)
    return vectors, table, rng.integers(1, items + 1, positions).astype(np.int32), weights


HOW = {
    "full": {},
    "blocks of items": {},
    "shared": dict(negatives=6),
    "own": dict(negatives=6, sharing="per_position"),
}


@pytest.mark.parametrize("how", HOW)
def test_chunks_change_neither_loss_nor_gradient(how, monkeypatch):
    """Several chunks, the last one partly filled and some without any weight, against one."""
    vectors, table, targets, weights = many()
    rows = np.arange(len(targets), dtype=np.int32)

    def value_and_gradient(chunk_bytes):
        def loss(vectors, table):
            config = LossConfig(**HOW[how])
            data = (vectors, table, targets, weights, KEY, rows)
            return 3 * loss_of(config, *data, chunk_bytes=chunk_bytes)[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(vectors, table)

    expected = value_and_gradient(1 << 21)
    monkeypatch.setattr(losses, "MIN_CHUNK", 4)
    if how == "blocks of items":
        monkeypatch.setattr(losses, "MANY_ITEMS", 5)
        monkeypatch.setattr(chunked_sums, "BLOCK_ROWS", 4)
        monkeypatch.setattr(chunked_sums, "MIN_BLOCK_ITEMS", 5)
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    jax.tree.map(same, value_and_gradient(1), expected)


@pytest.mark.parametrize("negatives", [None, 5])
def test_a_batch_without_targets_has_loss_and_gradient_zero(negatives):
    vectors, table, targets, weights = many()
    value, gradient = jax.value_and_grad(
        lambda table: loss_of(
            LossConfig(negatives=negatives),
            *(vectors, table, targets, 0 * weights, KEY, np.arange(len(targets), dtype=np.int32)),
            chunk_bytes=1 << 10,
        )[0]
    )(table)
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("negatives", [None, 5])
def test_positions_without_weight_are_not_computed(negatives):
    """They would spread a NaN; only whole chunks are left out."""
    vectors, table, targets, weights = many(positions=256)
    weights = np.where(np.arange(256) % 4 == 0, 1, 0).astype(np.float32)
    bad = np.where(weights[:, None] == 0, np.nan, vectors)
    config = LossConfig(negatives=negatives)
    data = (table, targets, weights, KEY, np.arange(256, dtype=np.int32))
    expected, found = (loss_of(config, v, *data, chunk_bytes=1)[0] for v in (vectors, bad))
    assert found == expected


def test_a_large_catalogue_needs_no_array_of_positions_by_items():
    """Temporaries of a compiled loss and gradient, beside arguments and results."""
    positions, items = 1000, losses.MANY_ITEMS + 1
    shapes = [((positions, D), jnp.float32), ((items, D), jnp.float32), ((positions,), jnp.int32)]
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]

    def loss(vectors, table, targets):
        weights, rows = jnp.ones(positions), jnp.arange(positions, dtype=jnp.int32)
        data = (vectors, table, targets, weights, KEY, rows)
        return loss_of(LossConfig(), *data, chunk_bytes=1 << 20)[0]

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
    table_bytes = 4 * items * D
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * (1 << 20) + 8 * table_bytes


def test_chunks_are_as_large_as_the_platform_likes_them():
    small, large = (losses.loss_chunk_bytes(ComputeConfig(platform=p)) for p in ("cpu", "tpu"))
    assert small < 1 << 22 and large > 1 << 27
