"""The train step: the same update however the batch is divided, and never a non-finite one."""

from __future__ import annotations

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rec2pm_jax.config import ComputeConfig, Config, OptimConfig, TrainConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.training.optimizer import make_optimizer
from rec2pm_jax.training.partition import make_partition
from rec2pm_jax.training.step import init_train_state, make_train_step
from tests.helpers.train_fakes import FakeMethod, is_step, make_iterator

BATCH = 16
CONFIG = Config(
    optim=OptimConfig(learning_rate=1e-2, warmup_steps=3),
    train=TrainConfig(steps=50, batch_size=BATCH),
)


def config_of(kind="jit", accumulate=1, devices=1):
    train = dataclasses.replace(CONFIG.train, partition=kind)
    compute = ComputeConfig(accumulate=accumulate, devices=devices)
    return dataclasses.replace(CONFIG, train=train, compute=compute)


def train(kind="jit", accumulate=1, devices=1, steps=3, method=None):
    method = method or FakeMethod(CONFIG, noise=0.1)
    partition = make_partition(config_of(kind, accumulate, devices), method)
    state = partition.init()
    iterator, log = make_iterator(BATCH), []
    for _ in range(steps):
        state, metrics = partition.step(state, next(iterator))
        log.append(jax.device_get(metrics))
    return partition.gather(state), log


@pytest.fixture(scope="module")
def undivided():
    return train()


def assert_same(got, want, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), got, want)


@pytest.mark.parametrize(
    ("kind", "accumulate", "devices"), [("jit", 4, 1), ("pmap", 2, 1), ("jit", 2, 4), ("jit", 1, 0)]
)
def test_dividing_the_batch_changes_nothing(kind, accumulate, devices, undivided):
    """Micro-batches of 4 examples or 1, some of which have no weight in the second loss term."""
    state, log = train(kind, accumulate, devices)
    expected_state, expected_log = undivided
    assert_same(state.params, expected_state.params, 1e-6)
    assert int(state.step) == 3
    for got, want in zip(log, expected_log, strict=True):
        assert got.keys() == want.keys()
        assert_same(got, want, 1e-5)


@pytest.mark.smoke
def test_matches_the_objective_written_out():
    """One step against jax.grad of sum_i c_i * sum_i / W_i on the whole batch."""
    method = FakeMethod(CONFIG, noise=0.1)
    optimizer = make_optimizer(CONFIG.optim, 50)
    state = init_train_state(method, optimizer, seed=7)._replace(step=jnp.int32(5))
    batch = next(make_iterator(BATCH))
    new, metrics = jax.jit(make_train_step(method, optimizer, seed=7, accumulate=2))(state, batch)

    def objective(params):
        rng = jax.random.fold_in(jax.random.key(7), 5)
        terms = method.loss(params, batch, rng)
        means = {name: value / weight for name, (value, weight) in terms.items()}
        return means["ar"] + 0.05 * means["norm"], means

    (loss, means), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(state.params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(gradient, state.opt_state, state.params)
    assert_same(new.params, optax.apply_updates(state.params, updates), 1e-6)
    assert int(new.step) == 6
    np.testing.assert_allclose(metrics["loss/total"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/ar"], means["ar"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/norm"], means["norm"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    assert int(metrics["tokens"]) == (batch["ids"][:, 1:] != 0).sum()


def test_random_numbers_depend_on_seed_and_step():
    method, batch = FakeMethod(CONFIG, noise=1.0), next(make_iterator(BATCH))
    optimizer = make_optimizer(CONFIG.optim, 50)
    state = init_train_state(method, optimizer, seed=0)

    losses = []
    for seed in (0, 1):
        train_step = jax.jit(make_train_step(method, optimizer, seed))
        for step in (20, 20, 21):
            metrics = train_step(state._replace(step=jnp.int32(step)), batch)[1]
            losses.append(float(metrics["loss/ar"]))
    assert losses[0] == losses[1]
    assert len(set(losses)) == 4


def test_a_term_without_weight_is_zero():
    batch = next(make_iterator(BATCH))
    batch["ids"] = batch["ids"].copy()
    batch["ids"][:, 4:] = 0  # no example reaches the last position
    method = FakeMethod(CONFIG)
    optimizer = make_optimizer(CONFIG.optim, 50)
    state = init_train_state(method, optimizer, seed=0)._replace(step=jnp.int32(9))
    _, metrics = jax.jit(make_train_step(method, optimizer, seed=0))(state, batch)
    assert metrics["loss/norm"] == 0
    assert metrics["finite"] == 1


class BreaksAt(FakeMethod):
    """Its loss (or only its gradient) is not finite at step 2."""

    def __init__(self, gradient_only):
        super().__init__(CONFIG)
        self.gradient_only = gradient_only

    def loss(self, params, batch, rng):
        terms, broken = super().loss(params, batch, rng), is_step(rng, 2)
        x = params["dense"]["kernel"].sum()
        if self.gradient_only:  # sqrt(0 * x) is 0 with a derivative that is not finite
            extra = jnp.sqrt(jnp.where(broken, 0 * x, 1))
        else:
            extra = x * jnp.where(broken, jnp.inf, 0)
        value, weight = terms["ar"]
        return terms | {"ar": (value + extra, weight)}


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_step_that_is_not_finite_is_not_applied(gradient_only):
    method = BreaksAt(gradient_only)
    expected, _ = train(steps=2, method=method)
    state, log = train(steps=3, method=method)
    assert [entry["finite"] for entry in log] == [1, 1, 0]
    assert bool(np.isfinite(log[-1]["loss/total"])) == gradient_only
    jax.tree.map(np.testing.assert_array_equal, state, expected)


@pytest.mark.parametrize(
    ("kind", "accumulate", "devices", "message"),
    [
        ("pmap", 3, 1, "batch_size=16 must be a multiple of 8 devices x .*partition=pmap"),
        ("jit", 1, 3, "batch_size=16 must be a multiple of 3 devices x .*compute.devices"),
        ("jit", 1, 9, "compute.devices=9, but there are 8 devices"),
    ],
)
def test_refuses_devices_that_cannot_share(kind, accumulate, devices, message):
    config = dataclasses.replace(CONFIG, train=TrainConfig(batch_size=BATCH, partition=kind))
    compute = mock.Mock(accumulate=accumulate, devices=devices)
    object.__setattr__(config, "compute", compute)  # 3 micro-batches of 16 are no Config
    with pytest.raises(UserError, match=message):
        make_partition(config, FakeMethod(CONFIG))
