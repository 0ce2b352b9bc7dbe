"""Passes that compute only some rows of their last layer against whole passes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import ModelConfig
from rec2pm_jax.nn.cache import Rows
from tests.helpers.layers import DIM, TOKENS, large_parameters, make_layout, stack

USERS = 3
WANTED = {"shared": (Rows(1, 3), [1, 1, 1]), "own": (Rows(jnp.array([1, 0, 3]), 3), [1, 0, 3])}
CASES = [("sasrec", "none", 1), ("sasrec", "none", 3), ("hstu", "position_time", 3)]


def tokens():
    return np.random.default_rng(3).normal(0, 1, (USERS, TOKENS, DIM)).astype(np.float32)


@functools.cache
def made(backbone, bias, layers, dropout=0.0):
    config = ModelConfig(
        backbone=backbone, relative_bias=bias, layers=layers, dim=DIM, heads=2, dropout=dropout
    )
    module, layout = stack(config), make_layout(times=True)
    times = {
        name: jnp.tile(getattr(layout, name), (USERS, 1)) for name in ("row_times", "key_times")
    }
    return module, layout.replace(**times), large_parameters(module, tokens(), layout)


def value_and_gradients(run, module_params, x):
    """Outputs, and gradients of their square weighted unevenly."""

    def objective(params, x):
        out = run(params, x)
        weights = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return jnp.sum(weights * out * out) / out.size, out

    return jax.jit(jax.grad(objective, (0, 1), has_aux=True))(module_params, x)


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize(("backbone", "bias", "layers"), CASES)
def test_wanted_rows_and_gradients_are_those_of_a_whole_pass(
    backbone, bias, layers, unroll, wanted
):
    module, layout, params = made(backbone, bias, layers)
    rows, first = WANTED[wanted]

    def whole(params, x):
        out, _ = module(params, x, layout)
        return jnp.stack([out[b, f : f + rows.count] for b, f in enumerate(first)])

    def some(params, x):
        return module(params, x, layout, wanted=rows, unroll=unroll)[0]

    expected = value_and_gradients(whole, params, tokens())
    got = value_and_gradients(some, params, tokens())
    scale = max(np.abs(a).max() for a in jax.tree.leaves(expected))
    for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("wanted", [Rows(1, 4), None])
def test_every_layer_and_row_number_draws_different_dropout(wanted, unroll):
    """SASRec layers that add 400 * mask after a norm: the masks of the last two can be read off."""
    module, layout, params = made("sasrec", "none", 2, 0.5)
    params = jax.tree.map(jnp.zeros_like, params)
    params["layers"]["ffn_out"]["bias"] += 200.0  # doubled where it is kept
    numbers = jnp.array([5, 6, 5])
    x = tokens()
    x[2] = x[0]

    def out(key, rows=slice(None)):
        options = {"rng": key, "rows": numbers[rows], "wanted": wanted, "unroll": unroll}
        return module(params, x[rows], layout, **options)[0]

    key = jax.random.key(7)
    got = np.asarray(out(key))
    np.testing.assert_array_equal(got[0], got[2])  # the same number
    np.testing.assert_array_equal(got[1], out(key, slice(1, 2))[0])  # whatever its batch mates
    second = got[:2] > 200
    first = got[:2] - 400 * second > 0
    for mask in (first, second):
        assert 0.2 < mask.mean() < 0.8
        assert 0.2 < (mask[0] != mask[1]).mean() < 0.8
    assert 0.2 < (first != second).mean() < 0.8
    assert np.any(np.asarray(out(jax.random.key(8))) != got)


def test_the_last_layer_makes_attention_scores_of_wanted_rows_only():
    module, layout, params = made("sasrec", "none", 1)

    def run(params, x):
        return module(params, x, layout, wanted=Rows(1, 2), unroll=True)[0]

    program = jax.jit(run).lower(params, tokens()).as_text()
    heads = module.spec.config.heads
    assert f"tensor<{USERS}x{heads}x2x{TOKENS}xf32>" in program
    assert f"tensor<{USERS}x{heads}x{TOKENS}x{TOKENS}xf32>" not in program
