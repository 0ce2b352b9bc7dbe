"""Dropout: the bytes it draws, its rate, and independence of rows and batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.nn import dropout
from rec2pm_jax.nn.dropout import Dropout, random_bytes


def test_random_bytes_are_uniform_and_independent():
    """Of one key: all values equally often, no correlation at any of the strides of an array. Of
    several keys: no two alike."""
    bytes_of = jax.jit(random_bytes, static_argnums=1)
    one = np.asarray(bytes_of(jax.random.key(0), (333, 1000))).ravel()
    expected = one.size / 256
    assert 180 < np.sum((np.bincount(one, minlength=256) - expected) ** 2) / expected < 340
    for lag in (1, 2, 3, 4, 5, 8, 64, 256, 1000, 1024, 4096):
        assert abs(np.corrcoef(one[:-lag], one[lag:])[0, 1]) < 5 / np.sqrt(one.size)
    many = np.stack([bytes_of(jax.random.key(k), (4096,)) for k in range(100)])
    apart = np.corrcoef(many) - np.eye(100)
    assert np.abs(apart).max() < 5 / np.sqrt(4096)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 9, 4), (1,)])
def test_bytes_are_the_same_on_accelerators(shape):
    words = jnp.array([5, 77, 2**31 + 3], jnp.uint32)
    cut, picked = (f(words, shape=shape) for f in (dropout._split_words, dropout._select_bytes))
    np.testing.assert_array_equal(cut, picked)
    assert cut.dtype == picked.dtype == jnp.uint8 and cut.shape == shape


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_at_its_rate_and_keeps_the_expectation(rate):
    x = jnp.ones((400, 400))
    rngs = {"dropout": jax.random.key(0)}
    rows = jnp.arange(400)
    out = np.asarray(Dropout(rate).apply({}, x, rows, rngs=rngs))
    assert abs((out == 0).mean() - rate) < 0.01
    assert abs(out.mean() - 1) < 0.01
    assert len(np.unique(out)) == 2
    part = Dropout(rate).apply({}, x[5:7], rows[5:7], rngs=rngs)
    np.testing.assert_array_equal(part, out[5:7])  # a row's mask does not depend on its batch


def test_dropout_is_the_identity_without_rows_or_at_rate_zero():
    x = jnp.ones((3, 3))
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, None), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, jnp.arange(3)), x)  # needs no key
