"""Requests and updates of users over an item table whose rows are spread over devices.

Inside `jax.shard_map`: every device has users of its own, fetches the rows of their events, and works
on these as if they were the whole catalogue, as a training step does. For the best items the devices
score their rows for everybody. Where a bucket of the exchange overflows, rows would be wrong: then
scores are NaN, states stay as they were, and `needed` says which capacity it takes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec2pm_jax.config import Config
from rec2pm_jax.methods.base import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.losses import to_item_vectors, to_queries
from rec2pm_jax.nn.catalogue.row_exchange import bucket_capacity, fetch, plan_exchange
from rec2pm_jax.nn.catalogue.sharded_scoring import top_k_per_device
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows, table_rows
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.typing import PADDING_ID, Array, Events, Params, State


def read_best(
    config: Config,
    num_items: int,
    k: int,
    params: Params,
    state: State,
    events: Events,
    valid: Array,
    time: Array | None,
    *,
    axis_name: str,
) -> tuple[Array, Array, Array]:
    """`Method.read`, and the k best items: (scores float32 [B, k], ids int32 [B, k], needed).

    Args:
      params: as `Method.init` returns them, the item table packed and this device's part of it.
      state, events, valid, time: of this device's users, as `Method.read` takes them.

    Returns:
      scores and ids as of `Method.best`, except that of equal scores any may come first; NaN where
      `needed`, int32 scalar, exceeds the capacity of the buckets.
    """
    table = params["embedding"][TABLE]
    method, own, events, needed, fits = _with_rows(config, num_items, params, events, axis_name)
    vectors = method.read(own, state, events, valid, time)
    queries = to_queries(config.loss, vectors)

    def rows(part: Array) -> Array:
        return to_item_vectors(config.loss, part)

    scores, ids = top_k_per_device(queries, table, k, num_items, rows, axis_name)
    return jnp.where(fits, scores, jnp.nan), ids, needed


def update(
    config: Config,
    num_items: int,
    params: Params,
    state: State,
    events: Events,
    valid: Array,
    time: Array | None,
    *,
    axis_name: str,
) -> tuple[State, Array]:
    """`Method.update`: (the states, those given where a bucket overflows; needed), see `read_best`."""
    method, own, events, needed, fits = _with_rows(config, num_items, params, events, axis_name)
    updated = method.update(own, state, events, valid, time)
    return jax.tree.map(lambda new, old: jnp.where(fits, new, old), updated, state), needed


def _with_rows(
    config: Config, num_items: int, params: Params, events: Events, axis_name: str
) -> tuple[Method, Params, Events, Array, Array]:
    """A method over the rows of `events`, its params, the events in its ids, needed, and if it fits."""
    table, dim = params["embedding"][TABLE], config.item_dim
    shards, rows = jax.lax.axis_size(axis_name), table_rows(num_items)
    ids = jnp.append(jnp.int32(PADDING_ID), events.ids)  # has the lowest row, so it stays id 0
    capacity = config.compute.bucket_rows or bucket_capacity(len(ids), shards)
    exchange, places = plan_exchange(ids_to_rows(ids, rows), rows, shards, capacity, axis_name)
    fetched = fetch(table, exchange, len(ids), dim, axis_name)
    needed = jax.lax.pmax(exchange.needed, axis_name)
    own = {**params, "embedding": {**params["embedding"], TABLE: fetched}}
    events = events._replace(ids=places[1:].reshape(events.ids.shape))
    return make_method(config, len(ids) - 1), own, events, needed, needed <= capacity
