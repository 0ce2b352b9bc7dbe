"""Catalogue losses against numpy formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import LossConfig
from rec2pm_jax.nn import losses
from rec2pm_jax.nn.losses import catalogue_logits

next_item_loss = jax.jit(losses.next_item_loss, static_argnums=0)
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
    if config.normalize:
        vectors, table = unit(vectors), unit(table)
    return vectors @ table.T / config.temperature


def logsumexp(x):
    return np.log(np.sum(np.exp(x), axis=-1))


COSINE = dict(normalize=True, temperature=0.05)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, COSINE])
def test_full_softmax_is_cross_entropy_over_real_items(how):
    config = LossConfig(**how)
    vectors, table = arrays()
    logits = similarity(config, vectors, table)
    expected = sum(logsumexp(logits[t, 1:]) - logits[t, TARGETS[t]] for t in range(4))
    total, weight = next_item_loss(config, vectors, table, TARGETS, WEIGHTS, KEY, ROWS)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert weight == 4


def test_padding_has_no_logit_and_no_gradient():
    vectors, table = arrays()
    logits = catalogue_logits(LossConfig(**COSINE), vectors, table)
    assert np.all(logits[:, 0] == -np.inf) and np.all(np.isfinite(logits[:, 1:]))
    np.testing.assert_allclose(
        logits[:, 1:], similarity(LossConfig(**COSINE), vectors, table)[:, 1:], rtol=1e-4
    )
    for config in (LossConfig(), LossConfig(kind="sampled_softmax", negatives=50, in_batch=True)):
        gradient = jax.grad(
            lambda x, config=config: next_item_loss(
                config, vectors, x, TARGETS, WEIGHTS, KEY, ROWS
            )[0]
        )(table)
        assert not np.any(gradient[0]) and np.any(gradient[1:])


@pytest.mark.parametrize("in_batch", [False, True])
def test_negatives_are_items_of_the_catalogue_or_of_the_batch(in_batch):
    config = LossConfig(kind="sampled_softmax", negatives=400, in_batch=in_batch)
    ids, log_q = sample_negatives(config, V - 1, TARGETS, WEIGHTS, KEY, ROWS)
    assert ids.shape == (400,)
    # Item 3 is the target of 2 of the 4 positions that count; padding is never drawn.
    probability = np.array([0, 1, 0, 2, 0, 0, 1]) / 4 if in_batch else np.array([0, *[1 / 6] * 6])
    np.testing.assert_allclose(np.bincount(ids, minlength=V) / 400, probability, atol=0.1)
    drawn = probability > 0
    np.testing.assert_allclose(log_q[drawn], np.log(probability[drawn]), rtol=1e-5)


def test_in_batch_negatives_skip_positions_that_do_not_count():
    """The target of a position of weight 0 is never a negative, whatever it is."""
    config = LossConfig(kind="sampled_softmax", negatives=200, in_batch=True)
    targets, weights = np.array([5, 1, 4, 2], np.int32), np.array([0, 1, 0, 1], np.float32)
    ids, _ = sample_negatives(config, V - 1, targets, weights, KEY, ROWS)
    assert set(np.asarray(ids).tolist()) == {1, 2}
    none, _ = sample_negatives(config, V - 1, targets, 0 * weights, KEY, ROWS)
    assert np.all((none >= 0) & (none < V))


@pytest.mark.parametrize("sharing", ["shared", "per_position"])
@pytest.mark.parametrize("how", [{}, {**COSINE, "in_batch": True, "log_q": True}])
def test_sampled_softmax_is_its_formula(sharing, how):
    config = LossConfig(kind="sampled_softmax", negatives=6, sharing=sharing, **how)
    vectors, table = arrays()
    ids, log_q = (
        np.asarray(x) for x in sample_negatives(config, V - 1, TARGETS, WEIGHTS, KEY, ROWS)
    )
    ids = np.broadcast_to(ids, (T, 6))
    assert (ids == TARGETS[:, None]).any()  # there are accidental hits to mask
    logits = similarity(config, vectors, table)
    if config.log_q:
        logits = logits - log_q
    expected = 0.0
    for t in range(4):
        negatives = [logits[t, i] for i in ids[t] if i != TARGETS[t]]
        positive = logits[t, TARGETS[t]]
        expected += logsumexp(np.array([positive, *negatives])) - positive
    total, weight = next_item_loss(config, vectors, table, TARGETS, WEIGHTS, KEY, ROWS)
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    assert weight == 4


def test_negatives_per_position_do_not_depend_on_the_batch():
    config = LossConfig(kind="sampled_softmax", negatives=6, sharing="per_position")
    ids, _ = sample_negatives(config, V - 1, TARGETS, WEIGHTS, KEY, ROWS)
    part, _ = sample_negatives(config, V - 1, TARGETS[2:4], WEIGHTS[2:4], KEY, ROWS[2:4])
    np.testing.assert_array_equal(part, ids[2:4])
    assert len(np.unique(ids, axis=0)) > 1


def test_log_q_of_uniform_negatives_cancels():
    vectors, table = arrays()
    with_q, without = (
        next_item_loss(
            LossConfig(kind="sampled_softmax", negatives=9, log_q=log_q),
            *(vectors, table, TARGETS, WEIGHTS, KEY, ROWS),
        )[0]
        for log_q in (True, False)
    )
    np.testing.assert_allclose(with_q, without, rtol=1e-5)


def test_the_whole_catalogue_as_negatives_is_the_full_softmax(monkeypatch):
    everything = jnp.arange(1, V, dtype=jnp.int32)
    monkeypatch.setattr(
        "rec2pm_jax.nn.losses.sample_negatives", lambda *args: (everything, jnp.zeros(V))
    )
    data = (*arrays(), TARGETS, WEIGHTS, KEY, ROWS)
    sampled = losses.next_item_loss(LossConfig(kind="sampled_softmax", negatives=V - 1), *data)
    full = next_item_loss(LossConfig(), *data)
    np.testing.assert_allclose(sampled[0], full[0], rtol=1e-6)


def test_only_accidental_hits_leave_the_positive_alone():
    """A single negative that is always the target: the loss is 0 and its gradient finite."""
    config = LossConfig(kind="sampled_softmax", negatives=3, in_batch=True)
    vectors, table = arrays()
    targets, weights = np.full(T, 2, np.int32), np.ones(T, np.float32)
    value, gradient = jax.value_and_grad(
        lambda v: next_item_loss(config, v, table, targets, weights, KEY, ROWS)[0]
    )(vectors)
    assert value == 0 and np.all(np.isfinite(gradient))


def test_zero_vectors_are_normalised_without_nan():
    config = LossConfig(**COSINE)
    _, table = arrays()
    gradient = jax.grad(lambda v: next_item_loss(config, v, table, TARGETS, WEIGHTS, KEY, ROWS)[0])(
        jnp.zeros((T, D))
    )
    assert np.all(np.isfinite(gradient))
