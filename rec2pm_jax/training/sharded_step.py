"""The training step over an item table whose rows are spread over devices.

Every device fetches the rows that its examples and the step's shared negatives need, once each. It
trains on them as if they were the whole catalogue. Their gradients go back to the devices that hold
the rows, and these rows alone change. Dense parameters are replicated, as in `training.step`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from rec2pm_jax.config import Config
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.network import with_step_rows
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.row_exchange import (
    bucket_capacity,
    fetch,
    plan_exchange,
    return_gradients,
)
from rec2pm_jax.nn.catalogue.sharded_table import (
    add_to_rows,
    check_shards,
    ids_to_rows,
    initial_rows,
    packed_shape,
    rows_to_ids,
    table_rows,
)
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.training.optimizer import make_dense_optimizer, make_table_schedule
from rec2pm_jax.training.rowwise_adagrad import RowwiseAdagradState, scaled_rows
from rec2pm_jax.training.step import (
    Metrics,
    TrainState,
    TrainStep,
    apply_if_finite,
    as_float32,
    batch_gradient,
    step_rng,
    sum_over_devices,
)
from rec2pm_jax.typing import PADDING_ID, Array, Batch, Params, PRNGKey

_NEGATIVES = 0x6E6567  # folded into the step's key
_TABLE = 0x746162  # folded into the run's key


def init_sharded_state(
    method: Method,
    optimizer: optax.GradientTransformation,
    seed: int,
    shards: int = 1,
    axis_name: str | None = None,
) -> TrainState:
    """Return this device's part of the state before the first step; no device builds the table.

    Args:
      method: the method to train.
      optimizer: of the dense parameters.
      seed: seed of the initialisation.
      shards: number of devices that share the table.
      axis_name: the mapped axis over these devices, or None for one device.

    Returns:
      A state whose `params` are as `Method.init` returns them, except for this part of the table
      (see `nn.catalogue.sharded_table`). `opt_state` is {"dense": of `optimizer`, "table":
      RowwiseAdagradState}.

    Raises:
      UserError: so many devices cannot share a table.
    """
    dim = method.config.model.dim
    check_shards(shards, dim)
    params = method.init(jax.random.key(seed))
    dense, _ = _split(params)
    count = table_rows(method.num_items) // shards
    first = count * (jax.lax.axis_index(axis_name) if axis_name else 0)
    index = first + jnp.arange(count, dtype=jnp.int32)
    table = fresh_rows(seed, rows_to_ids(index, count * shards), dim).reshape(
        packed_shape(count, dim)
    )
    adagrad = RowwiseAdagradState(jnp.zeros((), jnp.int32), jnp.zeros(count))
    opt_state = {"dense": optimizer.init(dense), "table": adagrad}
    return TrainState(jnp.zeros((), jnp.int32), _join(dense, table), opt_state)


def fresh_rows(seed: int, ids: Array, dim: int) -> Array:
    """Return rows of items before their first step: float32 [n, dim] for ids int32 [n]."""
    return initial_rows(jax.random.fold_in(jax.random.key(seed), _TABLE), ids, dim)


def make_sharded_step(
    config: Config,
    num_items: int,
    shards: int,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainStep:
    """Build `train_step(state, batch, *, axis_name=None)` for each of `shards` devices.

    Args:
      config: the whole configuration.
      num_items: number of items, without padding.
      shards: number of devices that share the table.
      optimizer: of the dense parameters, given clipped gradients; None for that of `config.optim`.

    Returns:
      train_step as of `make_train_step`. Apart from rounding, its result does not depend on the
      number of devices. It has three more metrics:

      - `fits`: 0 if a bucket overflowed and nothing was changed, else 1.
      - `bucket_rows`: the capacity that the fullest bucket of the step needs.
      - `bucket_capacity`: the capacity of a bucket.
    """
    optimizer = optimizer or make_dense_optimizer(config.optim, config.train.steps)
    schedule = make_table_schedule(config.optim, config.train.steps)
    seed, negatives = config.train.seed, config.loss.negatives or 0
    rows, dim = table_rows(num_items), config.model.dim
    own_rows = rows // shards

    def train_step(
        state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        rng = step_rng(seed, state.step)
        dense, table = _split(state.params)
        drawn = draw_negatives(rng, negatives, num_items)
        padding = jnp.full(1, PADDING_ID, jnp.int32)  # has the lowest row, so it stays id 0
        ids = jnp.concatenate([padding, drawn, batch["ids"].reshape(-1)])
        capacity = config.compute.bucket_rows or bucket_capacity(len(ids), shards)
        exchange, places = plan_exchange(ids_to_rows(ids, rows), rows, shards, capacity, axis_name)
        fetched = fetch(table, exchange, len(ids), dim, axis_name)
        own = batch | {"ids": places[1 + negatives :].reshape(batch["ids"].shape)}

        def assemble(variables: Params) -> Params:
            params = _join(variables["dense"], variables["rows"])
            return with_step_rows(params, places[1 : 1 + negatives])

        gradient, loss, metrics = batch_gradient(
            # The catalogue of a step is what it has fetched.
            make_method(config, len(ids) - 1),
            assemble,
            {"dense": dense, "rows": fetched},
            own,
            rng,
            config.compute.accumulate,
            axis_name,
        )
        to_dense = sum_over_devices(gradient["dense"], axis_name)
        index, to_rows = return_gradients(gradient["rows"], exchange, own_rows, axis_name)
        squares = sum_over_devices(jnp.sum(jnp.square(to_rows)), axis_name)
        grad_norm = jnp.sqrt(squares + jnp.square(optax.tree.norm(to_dense)))

        needed = jax.lax.pmax(exchange.needed, axis_name) if axis_name else exchange.needed
        fits = needed <= capacity
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        applied = fits & finite
        scale = _clip_factor(grad_norm, config.optim.clip_norm)
        to_dense, to_rows = jax.tree.map(lambda g: g * scale, (to_dense, to_rows))

        with jax.numpy_dtype_promotion("standard"):  # as in `training.step`
            updates, dense_state = optimizer.update(to_dense, state.opt_state["dense"], dense)
            rate = schedule(state.opt_state["table"].count)
        index = index + jnp.where(applied, 0, own_rows)  # out of range: nothing changes
        new_table, adagrad = _update_rows(
            table, state.opt_state["table"], index, to_rows, rate, applied
        )
        new_step, dense, dense_state = apply_if_finite(
            applied,
            (state.step + 1, optax.apply_updates(dense, updates), dense_state),
            (state.step, dense, state.opt_state["dense"]),
        )
        opt_state = {"dense": dense_state, "table": adagrad}
        metrics |= {
            "grad_norm": grad_norm,
            "finite": finite,
            "fits": fits,
            "bucket_rows": needed,
            "bucket_capacity": jnp.int32(capacity),
        }
        return TrainState(new_step, _join(dense, new_table), opt_state), as_float32(metrics)

    return train_step


def draw_negatives(rng: PRNGKey, count: int, num_items: int) -> Array:
    """Draw the ids of a step's negatives: int32 [count], uniform with replacement.

    All devices draw the same ids.
    """
    key = jax.random.fold_in(rng, _NEGATIVES)
    return jax.random.randint(key, (count,), 1, num_items + 1)


def _update_rows(
    table: Array,
    state: RowwiseAdagradState,
    index: Array,
    gradient: Array,
    rate: Array,
    applied: Array,
) -> tuple[Array, RowwiseAdagradState]:
    """Apply one Adagrad update to the rows `index`; those out of range are skipped.

    The table is changed in place if it was donated.
    """
    old = state.accumulator.at[index].get(mode="fill", fill_value=0)
    accumulator, direction = scaled_rows(gradient, old)
    return (
        add_to_rows(table, index, -rate.astype(table.dtype) * direction),
        RowwiseAdagradState(
            state.count + applied.astype(jnp.int32),
            state.accumulator.at[index].set(
                accumulator, mode="drop", unique_indices=True, indices_are_sorted=True
            ),
        ),
    )


def _clip_factor(norm: Array, limit: float | None) -> Array:
    """Return the factor that reduces a gradient of this norm to `limit`; 1 if there is none."""
    return jnp.float32(1) if limit is None else jnp.where(norm > limit, limit / norm, 1.0)


def _split(params: Params) -> tuple[Params, Array]:
    """Return the dense parameters and the item table."""
    embedding = dict(params["embedding"])
    table = embedding.pop(TABLE)
    return {**params, "embedding": embedding}, table


def _join(dense: Params, table: Array) -> Params:
    """Return parameters with the item table in its place, the inverse of `_split`."""
    return {**dense, "embedding": {**dense["embedding"], TABLE: table}}
