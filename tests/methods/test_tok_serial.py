"""Back-propagation through time against a Python loop over what inference calls."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.typing import Events
from tests.helpers.methods import batch_of, make

S, K = 3, 3
CASES = [
    ("sasrec", "none", "overwrite", 1),
    pytest.param("hstu", "position_time", "append", 2, marks=pytest.mark.slow),
    pytest.param("sasrec", "none", "overwrite", 2, marks=pytest.mark.slow),
]


def serial(backbone="sasrec", bias="none", memory="overwrite", recent=1, **options):
    return make(backbone, name="tok_serial", bias=bias, memory=memory, recent=recent, **options)


def training_batch(method):
    """A full window, one that ends within the last segment, and one within the first."""
    width = method.config.data.window + 1
    times = method.config.model.relative_bias == "position_time"
    return batch_of([width, 8, 3], width, times=times)


def mean_loss(method, batch):
    def loss(params):
        total, weight = method.loss(params, batch, None)["ar"]
        return total / weight

    return loss


def loop_loss(method, batch):
    """Mean cross-entropy of reads and updates called one after the other."""
    length = method.read_length

    def fields(start, stop):
        part = slice(start, min(stop, batch["ids"].shape[1] - 1))
        times = None if "times" not in batch else batch["times"][:, part]
        return Events(batch["ids"][:, part], times)

    def next_time(ids, start):
        """Of the event after each row's last one."""
        if "times" not in batch:
            return None
        last = start + np.maximum((ids > 0).sum(axis=1), 1) - 1
        return np.take_along_axis(batch["times"], last[:, None] + 1, axis=1)[:, 0]

    def loss(params):
        state = method.init_state(params, len(batch["ids"]))
        total, count = 0.0, 0
        for h in range(K):
            window = fields(h * S, h * S + length)
            targets = batch["ids"][:, h * S + 1 : h * S + 1 + length]
            asked = next_time(window.ids, h * S)
            readout = method.read_all(params, state, window, window.ids > 0, asked)
            log_p = jax.nn.log_softmax(method.score(params, readout), axis=-1)
            taken = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
            total -= jnp.sum(jnp.where(targets > 0, taken, 0.0))
            count += (targets > 0).sum()
            segment = fields(h * S, h * S + S)
            asked = next_time(segment.ids, h * S)
            state = method.update(params, state, segment, segment.ids > 0, asked)
        return total / np.float32(count)

    return loss


def assert_same_gradients(got, want):
    for path, a in jax.tree_util.tree_leaves_with_path(got):
        b = want
        for key in path:
            b = b[key.key]
        scale = np.abs(b).max()
        # A key's bias moves all scores of a softmax alike: its gradient is rounding.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * scale + 4e-6, err_msg=str(path))


@pytest.mark.parametrize(("backbone", "bias", "memory", "recent"), CASES)
def test_loss_and_gradient_are_those_of_a_loop(backbone, bias, memory, recent):
    method, params = serial(backbone, bias, memory, recent)
    batch = training_batch(method)
    value, gradient = jax.jit(jax.value_and_grad(mean_loss(method, batch)))(params)
    loop = jax.jit(jax.value_and_grad(loop_loss(method, batch)))
    expected, expected_gradient = loop(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_same_gradients(gradient, expected_gradient)


def test_parameters_and_serving_are_those_of_rec2pm():
    """The families differ in the loss alone."""
    method, params = serial()
    reference, expected = make()
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    ids = np.array([[1, 2, 3], [4, 5, 0]], np.int32)
    states = [
        jax.jit(m.update)(params, m.init_state(params, 2), Events(ids), ids > 0)
        for m in (method, reference)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert reference.can_compress and not method.can_compress
    with pytest.raises(UserError, match="tok_serial has no one-pass compression"):
        method.compress(params, Events(ids), ids > 0)
