"""One training step as a pure function: losses, gradients, update.

The objective of a step is sum_i c_i * sum_i / W_i over the loss terms i. Here sum_i and W_i are
totals over the whole batch, however it is divided into micro-batches and devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.windows import target_weights
from rec2pm_jax.nn.item_features import ItemContent, add_training_content, init_content
from rec2pm_jax.typing import Array, Batch, Params, PRNGKey


class TrainState(NamedTuple):
    """Everything a step changes.

    Attributes:
      step: int32 scalar, the number of updates applied.
      params: parameters of the method.
      opt_state: state of the optimizer.
    """

    step: Array
    params: Params
    opt_state: optax.OptState


_CONTENT = 0x636F6E  # folded into the keys of run and step
Metrics = dict[str, Array]
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def init_train_state(
    method: Method,
    optimizer: optax.GradientTransformation,
    seed: int,
    content: ItemContent | None = None,
) -> TrainState:
    """Return the state before the first step (pure: may be jitted or given to `jax.eval_shape`)."""
    params = method.init(jax.random.key(seed))
    if content is not None:
        rng = jax.random.fold_in(jax.random.key(seed), _CONTENT)
        params = init_content(rng, params, method.config.model.item_features, content)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    seed: int,
    accumulate: int = 1,
    content: ItemContent | None = None,
) -> TrainStep:
    """Build `train_step(state, batch, *, axis_name=None) -> (state, metrics)`.

    Every micro-batch and device gets the same key, `fold_in(key(seed), step)`. Methods fold the
    global example index of `batch["index"]` into it where examples must differ.

    Args:
      method: the method to train.
      optimizer: transforms the gradient of the whole batch.
      seed: seed of all randomness in the step.
      accumulate: number of micro-batches; must divide the examples of `batch`.
      content: of the items, for `config.model.item_features`; it becomes a constant of the program.

    Returns:
      train_step. `axis_name` names the mapped axis (of `jax.pmap` or `jax.shard_map`) that divides
      the batch. Its metrics are float32 scalars over the whole batch:

      - `loss/<term>`: the mean of each loss term; `loss/total`: the objective.
      - `grad_norm`: norm of the gradient before clipping.
      - `tokens`: number of next-item targets.
      - `finite`: 0 if the loss or the gradient is not finite, else 1. With 0 the returned state is
        the one given, step included.
    """

    def train_step(
        state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        rng = step_rng(seed, state.step)

        def with_content(params: Params) -> Params:
            if content is None:
                return params
            return add_training_content(params, content, jax.random.fold_in(rng, _CONTENT))

        # Content is added once per step, not in every micro-batch.
        params, pull_back = jax.vjp(with_content, state.params)
        gradient, loss, metrics = batch_gradient(
            method, lambda params: params, params, batch, rng, accumulate, axis_name
        )
        [gradient] = pull_back(gradient)
        gradient = sum_over_devices(gradient, axis_name)
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
    """Return the key of a step, the same for every micro-batch and device."""
    return jax.random.fold_in(jax.random.key(seed), step)


def sum_over_devices(tree: Params, axis_name: str | None) -> Params:
    """Sum over the devices that share the batch; `axis_name` None means a single device."""
    return jax.lax.psum(tree, axis_name) if axis_name else tree


def apply_if_finite(applied: Array, updated: Params, old: Params) -> Params:
    """Return `updated` if the step is applied, else `old`."""
    return jax.tree.map(lambda new, old: jnp.where(applied, new, old), updated, old)


def as_float32(metrics: Metrics) -> Metrics:
    """Return the metrics as float32."""
    return {name: value.astype(jnp.float32) for name, value in metrics.items()}


def batch_gradient(
    method: Method,
    assemble: Callable[[Params], Params],
    variables: Params,
    batch: Batch,
    rng: PRNGKey,
    accumulate: int,
    axis_name: str | None,
) -> tuple[Params, Array, Metrics]:
    """Compute the gradient of a step's objective with respect to `variables`.

    Args:
      method: the method to train.
      assemble: variables -> the params that `method` takes.
      variables: what is differentiated.
      batch: the examples of this device.
      rng: the key of the step.
      accumulate: number of micro-batches.
      axis_name: the mapped axis that divides the batch, or None.

    Returns:
      This device's part of the gradient (`sum_over_devices` completes it), the objective over the whole
      batch, and the metrics `loss/..` and `tokens` over the whole batch.
    """
    coefficients = method.loss_weights
    micro = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)

    def total(tree: Params) -> Params:
        """Sum over micro-batches (leading axis) and devices."""
        return sum_over_devices(jax.tree.map(lambda x: x.sum(axis=0), tree), axis_name)

    # Only the weights leave this scan, so XLA drops the forward passes.
    weights = total(_scan_weights(method, assemble(variables), micro, rng))
    scales = {
        name: _divide(jnp.asarray(coefficients[name], jnp.float32), weight)
        for name, weight in weights.items()
    }

    def objective(variables: Params, part: Batch) -> tuple[Any, Metrics]:
        terms = method.loss(assemble(variables), part, rng)
        sums = {name: value for name, (value, _) in terms.items()}
        return sum(scales[name] * value for name, value in sums.items()), sums

    def accumulate_gradient(gradient: Params, part: Batch) -> tuple[Params, Metrics]:
        (_, sums), new = jax.value_and_grad(objective, has_aux=True)(variables, part)
        return jax.tree.map(jnp.add, gradient, new), sums

    gradient, sums = jax.lax.scan(
        accumulate_gradient, jax.tree.map(jnp.zeros_like, variables), micro
    )
    sums = total(sums)
    loss = sum(scales[name] * value for name, value in sums.items())
    tokens = (jax.vmap(target_weights)(micro) > 0).sum(axis=(1, 2))
    metrics = {f"loss/{name}": _divide(value, weights[name]) for name, value in sums.items()}
    return gradient, loss, metrics | {"loss/total": loss, "tokens": total(tokens)}


def _scan_weights(method: Method, params: Params, micro: Batch, rng: PRNGKey) -> dict[str, Array]:
    """Return the weight of each loss term in each micro-batch: float32 [accumulate], no gradient."""

    def weigh(carry: tuple[()], part: Batch) -> tuple[tuple[()], Metrics]:
        terms = method.loss(params, part, rng)
        return carry, {name: jax.lax.stop_gradient(weight) for name, (_, weight) in terms.items()}

    return jax.lax.scan(weigh, (), micro)[1]


def _divide(value: Array, weight: Array) -> Array:
    """Return value / weight, or 0 if the weight is 0 (a term without a single valid position)."""
    return jnp.where(weight > 0, value / jnp.where(weight > 0, weight, 1), 0)
