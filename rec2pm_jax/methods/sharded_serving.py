"""Requests and updates of users over an item table whose rows are spread over devices.

Everything here runs inside `jax.shard_map`. Each device has different users. It fetches the rows of
their events and works on these as if they were the whole catalogue, as a training step does. To find
the best items, each device scores its rows for all users.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rec2pm_jax.config import Config
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.losses import to_item_vectors, to_queries
from rec2pm_jax.nn.catalogue.row_exchange import bucket_capacity, fetch, plan_exchange
from rec2pm_jax.nn.catalogue.sharded_scoring import top_k_per_device
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows, table_rows
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.typing import PADDING_ID, Array, Events, Params, State


@dataclasses.dataclass(frozen=True)
class ShardedServing:
    """A method over a sharded table.

    If a bucket of the exchange overflows, fetched rows are wrong. Scores are then NaN, states stay as
    they were, and the result `needed` is the capacity that suffices.

    Attributes:
      config: the configuration, with `model.table` sharded.
      num_items: real items.
      axis_name: the mesh axis over which the table and the users are divided.
    """

    config: Config
    num_items: int
    axis_name: str

    def read_best(
        self,
        k: int,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        time: Array | None,
    ) -> tuple[Array, Array, Array]:
        """Return the k best items after a read: `Method.read`, then `Method.best`.

        Args:
          k: items per user.
          params: as `Method.init` returns them, the item table packed, this device's part of it.
          state, events, valid, time: of this device's users, as `Method.read` takes them.

        Returns:
          (scores float32 [B, k], ids int32 [B, k], needed int32 scalar). Items of equal score come in
          any order. Scores are NaN if `needed` exceeds the capacity of the buckets.
        """
        table = params["embedding"][TABLE]
        method, own, events, needed, fits = self._with_rows(params, events)
        vectors = method.read(own, state, events, valid, time)
        queries = to_queries(self.config.loss, vectors)
        scores, ids = top_k_per_device(
            queries, table, k, self.num_items, to_item_vectors, self.axis_name
        )
        return jnp.where(fits, scores, jnp.nan), ids, needed

    def update(
        self, params: Params, state: State, events: Events, valid: Array, time: Array | None
    ) -> tuple[State, Array]:
        """Return (the states after `Method.update`, needed); arguments as in `read_best`.

        The states are the given ones if a bucket overflows.
        """
        method, own, events, needed, fits = self._with_rows(params, events)
        updated = method.update(own, state, events, valid, time)
        return jax.tree.map(lambda new, old: jnp.where(fits, new, old), updated, state), needed

    def _with_rows(
        self, params: Params, events: Events
    ) -> tuple[Method, Params, Events, Array, Array]:
        """Fetch the rows of `events`.

        Returns:
          (a method over these rows, its params, the events in its ids, needed, whether they fit).
        """
        table, dim = params["embedding"][TABLE], make_method(self.config, self.num_items).item_dim
        shards, rows = jax.lax.axis_size(self.axis_name), table_rows(self.num_items)
        # Padding has the lowest row, so it stays id 0.
        ids = jnp.append(jnp.int32(PADDING_ID), events.ids)
        capacity = self.config.compute.bucket_rows or bucket_capacity(len(ids), shards)
        exchange, places = plan_exchange(
            ids_to_rows(ids, rows), rows, shards, capacity, self.axis_name
        )
        fetched = fetch(table, exchange, len(ids), dim, self.axis_name)
        needed = jax.lax.pmax(exchange.needed, self.axis_name)
        own = {**params, "embedding": {**params["embedding"], TABLE: fetched}}
        events = events._replace(ids=places[1:].reshape(events.ids.shape))
        return make_method(self.config, len(ids) - 1), own, events, needed, needed <= capacity
