"""The linear recurrence: one parallel pass in training, and a stored hidden state at serving."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.layers import lru
from tests.helpers.methods import batch_of, columns, histories, make, served_loss

S, K = 3, 3


@pytest.mark.parametrize("recent", [1, 2])
def test_the_training_pass_equals_serving_segment_by_segment(recent):
    method, params = make(name="linear_recurrence", recent=recent)
    size = method.read_length
    batch = batch_of([S * K + recent] * 2, S * K + recent)
    total, weight = jax.jit(lambda p: method.loss(p, batch, None)["ar"])(params)
    if recent == 1:
        expected = served_loss(method, params, batch)
        np.testing.assert_allclose(total / weight, expected, rtol=1e-5)
    assert float(weight) == 2 * K * size


def test_the_recurrence_is_the_loop_that_defines_it():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 7, 4)) + 1j * rng.normal(size=(2, 7, 4))
    rates = 0.9 * np.exp(1j * rng.normal(size=4))
    hidden = start = rng.normal(size=(2, 4)) + 1j * rng.normal(size=(2, 4))
    expected = []
    for t in range(7):
        hidden = rates * hidden + values[:, t]
        expected.append(hidden)
    found = lru._recur(*(jnp.asarray(x, jnp.complex64) for x in (rates, values, start)))
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_session_equals_reads_of_the_whole_window():
    method, params = make(name="linear_recurrence", recent=2)
    events, valid = histories([S, S], S)
    state = jax.jit(method.update)(params, method.init_state(params, 2), events, valid)
    raw, read = histories([4, 4], 4, seed=1)
    session, _ = method.open_session(params, state, columns(raw, 0, 2), read[:, :2])
    for count in (3, 4):
        event = columns(raw, count - 1, count)
        session, readout = method.step_session(params, session, event)
        whole = method.read(params, state, columns(raw, 0, count), read[:, :count])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[..., -1], b[..., -1], rtol=1e-4, atol=1e-5),
            readout.vectors,
            whole.vectors,
        )


def test_the_state_has_the_bytes_of_four_slots_with_two_layers():
    method, params = make(name="linear_recurrence")
    assert method.init_state(params, 1).memory.shape == (1, 1, 2 * 2 * 8)


def test_the_backbone_refuses_memory_tokens():
    method, params = make()
    model = method.config.model
    config = method.config.__class__(
        data=method.config.data,
        model=model.__class__(**{**model.__dict__, "backbone": "lru"}),
        method=method.config.method,
    )
    with pytest.raises(UserError, match="lru has no memory tokens"):
        batch = batch_of([10], 10)
        made = make_method(config, method.num_items)
        jax.eval_shape(lambda: made.loss(made.init(jax.random.key(0)), batch, None))
