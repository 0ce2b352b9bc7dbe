"""Schedule, decay mask and clipping."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import Config, OptimConfig
from rec2pm_jax.training.optimizer import decay_mask, is_decayed, make_optimizer, make_schedule
from tests.helpers.train_fakes import FakeMethod


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        # (step, rate): warm-up of 4 from 1/4, cosine from step 4 to 1 % at step 12.
        (
            OptimConfig(learning_rate=1.0, warmup_steps=4),
            {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 8: 0.505, 12: 0.01, 99: 0.01},
        ),
        (OptimConfig(learning_rate=1.0, warmup_steps=4, schedule="constant"), {3: 1.0, 99: 1.0}),
        (
            OptimConfig(learning_rate=1.0, warmup_steps=0),
            {0: 1.0, 6: 0.505, 12: 0.01},
        ),
        (OptimConfig(learning_rate=1.0, warmup_steps=20), {0: 0.05, 11: 0.6, 19: 1.0}),
    ],
)
def test_schedule(optim, expected):
    schedule = make_schedule(optim, 12)
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5)


def test_decay_mask():
    assert decay_mask(FakeMethod(Config()).init(jax.random.key(0))) == {
        "item": {"embedding": False},
        "dense": {"kernel": True, "bias": False},
    }
    # Stacked by a scan, biases and norms have two axes and still do not decay.
    assert not is_decayed("layers/dense/bias", 2)
    assert not is_decayed("layers/norm/scale", 2)
    assert not is_decayed("layers/LayerNorm_0/weight", 2)
    assert not is_decayed("memory/query_embedding", 2)
    assert not is_decayed("temperature", 1)
    assert is_decayed("layers/attention/query/kernel", 4)


def test_only_masked_parameters_decay():
    """With a zero gradient, a step is exactly -rate * weight_decay * parameter."""
    optim = OptimConfig(learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.5)
    optimizer = make_optimizer(optim, 10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(
            jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
        )
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_clipping_by_global_norm(clip_norm):
    """Adam's first moment after one step is (1 - b1) times the clipped gradient."""
    optimizer = make_optimizer(OptimConfig(clip_norm=clip_norm), 10)
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 3.0), params)
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update(gradient, optimizer.init(params), params)
    moments = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(find_moments(state))])
    expected = 0.1 * (clip_norm or 3.0 * 7**0.5)
    np.testing.assert_allclose(jnp.linalg.norm(moments), expected, rtol=1e-5)


def find_moments(state):
    """The first moments of Adam, wherever the chain keeps them."""
    if hasattr(state, "mu"):
        return state.mu
    parts = (find_moments(part) for part in state) if isinstance(state, tuple) else ()
    return next((part for part in parts if part is not None), None)
