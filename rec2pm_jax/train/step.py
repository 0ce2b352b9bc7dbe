"""One training step as a pure function: losses, gradients, update.

The objective of a step is sum_i c_i * sum_i / W_i over the loss terms i, where sum_i and W_i are
totals over the whole batch, whatever its division into micro-batches and devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rec2pm_jax.methods.method import Method
from rec2pm_jax.typing import PADDING_ID, Array, Batch, Params, PRNGKey


class TrainState(NamedTuple):
    """Everything a step changes. `step` is int32, the number of updates applied."""

    step: Array
    params: Params
    opt_state: optax.OptState


Metrics = dict[str, Array]
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def init_train_state(
    method: Method, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before the first step (pure: may be jitted or given to `jax.eval_shape`)."""
    params = method.init(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    method: Method, optimizer: optax.GradientTransformation, seed: int, accumulate: int = 1
) -> TrainStep:
    """Builds `train_step(state, batch, *, axis_name=None) -> (state, metrics)`.

    Every micro-batch and device gets the same key, `fold_in(key(seed), step)`; methods fold the
    global example index of `batch["index"]` into it where examples must differ.

    Args:
      method: what is trained.
      optimizer: transforms the gradient of the whole batch.
      seed: of all randomness in the step.
      accumulate: micro-batches; must divide the examples of `batch`.

    Returns:
      train_step. Its metrics are float32 scalars over the whole batch: `loss/<term>` (mean of each
      term), `loss/total` (the objective), `grad_norm` (before clipping), `tokens` (next-item
      targets), and `finite`, 1 or 0. With 0 (loss or gradient not finite) the returned state is
      the one given, step included. `axis_name` names the mapped axis (of `jax.pmap` or
      `jax.shard_map`) over which the batch is divided.
    """

    def train_step(
        state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        rng = step_rng(seed, state.step)
        gradient, loss, metrics = batch_gradient(
            method,
            lambda params: params,
            state.params,
            batch,
            rng,
            state.step,
            accumulate,
            axis_name,
        )
        gradient = over_devices(gradient, axis_name)
        grad_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        # Optax mixes integer and float scalars; everything else holds under strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updated = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        metrics |= {"grad_norm": grad_norm, "finite": finite}
        return apply_if_finite(finite, updated, state), as_float32(metrics)

    return train_step


def step_rng(seed: int, step: Array) -> PRNGKey:
    """The key of a step, the same for every micro-batch and device."""
    return jax.random.fold_in(jax.random.key(seed), step)


def over_devices(tree: Params, axis_name: str | None) -> Params:
    """Sums over the devices that share the batch."""
    return jax.lax.psum(tree, axis_name) if axis_name else tree


def apply_if_finite(applied: Array, updated: Params, old: Params) -> Params:
    """`updated` where the step is applied, else `old`."""
    return jax.tree.map(lambda new, old: jnp.where(applied, new, old), updated, old)


def as_float32(metrics: Metrics) -> Metrics:
    return {name: value.astype(jnp.float32) for name, value in metrics.items()}


def batch_gradient(
    method: Method,
    assemble: Callable[[Params], Params],
    variables: Params,
    batch: Batch,
    rng: PRNGKey,
    step: Array,
    accumulate: int,
    axis_name: str | None,
) -> tuple[Params, Array, Metrics]:
    """Gradient of a step's objective with respect to `variables`.

    Args:
      assemble: variables -> the params that `method` takes.
      batch: the examples of this device.

    Returns:
      This device's part of the gradient (`over_devices` completes it), the objective over the whole
      batch, and the metrics `loss/..` and `tokens` over the whole batch.
    """
    coefficients = method.loss_weights(step)
    micro = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)

    def total(tree):
        """Sums over micro-batches (leading axis) and devices."""
        return over_devices(jax.tree.map(lambda x: x.sum(axis=0), tree), axis_name)

    # Only the weights leave this scan, so XLA drops the forward passes.
    weights = total(_scan_weights(method, assemble(variables), step, micro, rng))
    scales = {
        name: _divide(jnp.asarray(coefficients[name], jnp.float32), weight)
        for name, weight in weights.items()
    }

    def objective(variables: Params, part: Batch):
        terms = method.loss(assemble(variables), part, rng, step=step)
        sums = {name: value for name, (value, _) in terms.items()}
        return sum(scales[name] * value for name, value in sums.items()), sums

    def accumulate_gradient(gradient: Params, part: Batch):
        (_, sums), new = jax.value_and_grad(objective, has_aux=True)(variables, part)
        return jax.tree.map(jnp.add, gradient, new), sums

    gradient, sums = jax.lax.scan(
        accumulate_gradient, jax.tree.map(jnp.zeros_like, variables), micro
    )
    sums = total(sums)
    loss = sum(scales[name] * value for name, value in sums.items())
    tokens = (micro["ids"][:, :, 1:] != PADDING_ID).sum(axis=(1, 2))
    metrics = {f"loss/{name}": _divide(value, weights[name]) for name, value in sums.items()}
    return gradient, loss, metrics | {"loss/total": loss, "tokens": total(tokens)}


def _scan_weights(
    method: Method, params: Params, step: Array, micro: Batch, rng: PRNGKey
) -> dict[str, Array]:
    """Weight of each loss term in each micro-batch: float32 [accumulate], without gradient."""

    def weigh(carry, part: Batch):
        terms = method.loss(params, part, rng, step=step)
        return carry, {name: jax.lax.stop_gradient(weight) for name, (_, weight) in terms.items()}

    return jax.lax.scan(weigh, (), micro)[1]


def _divide(value: Array, weight: Array) -> Array:
    """value / weight, and 0 where the weight is 0 (a term without a single valid position)."""
    return jnp.where(weight > 0, value / jnp.where(weight > 0, weight, 1), 0)
