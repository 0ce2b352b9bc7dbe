"""The training step over an item table whose rows are spread over devices.

Every device fetches the rows that its examples and the step's shared negatives need, once each, and
trains on them as if they were the whole catalogue; their gradients go back to the owners, who change
these rows and no other. Dense parameters are replicated, as in `train.step`.
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
from rec2pm_jax.train.optimizer import make_dense_optimizer, make_table_schedule
from rec2pm_jax.train.rowwise_adagrad import RowwiseAdagradState, scaled_rows
from rec2pm_jax.train.step import (
    Metrics,
    TrainState,
    TrainStep,
    apply_if_finite,
    as_float32,
    batch_gradient,
    over_devices,
    step_rng,
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
    """This device's part of the state before the first step; the whole table is never made.

    `params` is as `Method.init` returns it but for this part of the table, see `sharded_table`;
    `opt_state` is {"dense": of `optimizer`, "table": RowwiseAdagradState}.

    Raises:
      UserError: so many devices cannot share a table.
    """
    dim = method.config.item_dim
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
    """Rows of items before their first step: float32 [n, dim] for ids int32 [n]."""
    return initial_rows(jax.random.fold_in(jax.random.key(seed), _TABLE), ids, dim)


def make_sharded_step(
    config: Config,
    num_items: int,
    shards: int,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainStep:
    """Builds `train_step(state, batch, *, axis_name=None)` for each of `shards` devices.

    Args:
      optimizer: of the dense parameters, given clipped gradients; that of `config.optim` by default.

    Returns:
      train_step as of `make_train_step`, with three more metrics: `fits`, 0 where a bucket overflowed
      and nothing was changed, `bucket_rows`, the capacity the fullest bucket of the step needs, and
      `bucket_capacity`. Its result does not depend on the number of devices but for rounding.
    """
    optimizer = optimizer or make_dense_optimizer(config.optim, config.train.steps)
    schedule = make_table_schedule(config.optim, config.train.steps)
    seed, negatives = config.train.seed, config.loss.negatives
    rows, dim = table_rows(num_items), config.item_dim
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
            state.step,
            config.compute.accumulate,
            axis_name,
        )
        to_dense = over_devices(gradient["dense"], axis_name)
        index, to_rows = return_gradients(gradient["rows"], exchange, own_rows, axis_name)
        squares = over_devices(jnp.sum(jnp.square(to_rows)), axis_name)
        grad_norm = jnp.sqrt(squares + jnp.square(optax.tree.norm(to_dense)))

        needed = jax.lax.pmax(exchange.needed, axis_name) if axis_name else exchange.needed
        fits = needed <= capacity
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        applied = fits & finite
        scale = _clip(grad_norm, config.optim.clip_norm)
        to_dense, to_rows = jax.tree.map(lambda g: g * scale, (to_dense, to_rows))

        with jax.numpy_dtype_promotion("standard"):  # as in `train.step`
            updates, dense_state = optimizer.update(to_dense, state.opt_state["dense"], dense)
            rate = schedule(state.opt_state["table"].count)
        index = index + jnp.where(applied, 0, own_rows)  # out of range: nothing changes
        new_table, adagrad = _change_rows(
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
    """Ids of a step's negatives, int32 [count]: uniform with replacement, the same on all devices."""
    key = jax.random.fold_in(rng, _NEGATIVES)
    return jax.random.randint(key, (count,), 1, num_items + 1)


def _change_rows(table, state: RowwiseAdagradState, index, gradient, rate, applied):
    """One Adagrad update of rows `index` (those out of range are skipped), in place if donated."""
    options = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
    old = state.accumulator.at[index].get(mode="fill", fill_value=0)
    accumulator, direction = scaled_rows(gradient, old)
    return (
        add_to_rows(table, index, -rate.astype(table.dtype) * direction),
        RowwiseAdagradState(
            state.count + applied.astype(jnp.int32),
            state.accumulator.at[index].set(accumulator, **options),
        ),
    )


def _clip(norm: Array, limit: float) -> Array:
    """The factor that brings a gradient of this norm to at most `limit`; 1 without a limit."""
    return jnp.where(norm > limit, limit / norm, 1.0) if limit else jnp.float32(1)


def _split(params: Params) -> tuple[Params, Array]:
    """Dense parameters and the item table."""
    embedding = dict(params["embedding"])
    table = embedding.pop(TABLE)
    return {**params, "embedding": embedding}, table


def _join(dense: Params, table: Array) -> Params:
    return {**dense, "embedding": {**dense["embedding"], TABLE: table}}
