"""Requests and updates of users over an item table whose rows are spread over devices.

Everything here runs inside `jax.shard_map`. Each device has different users. It fetches the rows of
their events and works on these as if they were the whole catalogue, as a training step does. To find
the best items, each device scores its rows for all users.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.config import Config
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.filters import NO_FILTER, ItemFilter
from rec2pm_jax.nn.catalogue.losses import to_item_vectors, to_queries
from rec2pm_jax.nn.catalogue.row_exchange import bucket_capacity, fetch, plan_exchange
from rec2pm_jax.nn.catalogue.sharded_scoring import best_per_device
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows, table_rows
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.typing import PADDING_ID, Array, Events, Params, Readout, State


class _Part(NamedTuple):
    """The part of a model that some users need, with items numbered by the rows that were fetched.

    Attributes:
      method, params: over these rows.
      state, events: of the users, in these numbers.
      ids: int32 [n], the item id of each number.
      needed: int32 scalar, the capacity of a bucket that suffices.
      fits: bool scalar, whether the buckets had it.
    """

    method: Method
    params: Params
    state: State
    events: Events
    ids: Array
    needed: Array
    fits: Array


@dataclasses.dataclass(frozen=True)
class ShardedServing:
    """A method over a sharded table.

    If a bucket of the exchange overflows, fetched rows are wrong. Scores are then NaN, states stay as
    they were, and the result `needed` is the capacity that suffices.

    Attributes:
      config: the configuration, with `model.table` sharded.
      num_items: real items.
      axis_name: the mesh axis over which the table and the users are divided.
      holds_all: whether buckets have room for all rows, so that none overflows; for small batches.
    """

    config: Config
    num_items: int
    axis_name: str
    holds_all: bool = False

    def read_best(
        self,
        k: int,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        time: Array | None,
        rule: ItemFilter = NO_FILTER,
    ) -> tuple[Array, Array, Array]:
        """Return the k best items after a read: `Method.read`, then `Method.best`.

        Args:
          k: items per user.
          params: as `Method.init` returns them, the item table packed, this device's part of it.
          state, events, valid, time: of this device's users, as `Method.read` takes them.
          rule: which items they may get; the blocked items are the same on all devices.

        Returns:
          (scores float32 [B, k], ids int32 [B, k], needed int32 scalar), see `best_per_device`. Scores
          are NaN if `needed` exceeds the capacity of the buckets.
        """
        table = params["embedding"][TABLE]
        part = self._with_rows(params, state, events)
        readout = part.method.read(part.params, part.state, part.events, valid, time)
        queries, own = to_queries(self.config.loss, readout.vectors), None
        if readout.own is not None:
            numbers = readout.own.ids  # by the rows that were fetched
            vectors = part.method.network.item_vectors(part.params, numbers)
            own = readout.own._replace(ids=part.ids[numbers]), vectors
        scores, ids = best_per_device(
            queries, table, k, self.num_items, to_item_vectors, self.axis_name, rule, own
        )
        return jnp.where(part.fits, scores, jnp.nan), ids, part.needed

    def read(
        self, params: Params, state: State, events: Events, valid: Array, time: Array | None
    ) -> Readout:
        """Return what `Method.read` returns; arguments as in `read_best`. It needs `holds_all`."""
        part = self._with_rows(params, state, events)
        readout = part.method.read(part.params, part.state, part.events, valid, time)
        own = readout.own
        return readout._replace(own=own and own._replace(ids=part.ids[own.ids]))

    def update(
        self, params: Params, state: State, events: Events, valid: Array, time: Array | None
    ) -> tuple[State, Array]:
        """Return (the states after `Method.update`, needed); arguments as in `read_best`.

        The states are the given ones if a bucket overflows.
        """
        part = self._with_rows(params, state, events)
        updated = part.method.update(part.params, part.state, part.events, valid, time)
        exact = updated.exact._replace(items=part.ids[updated.exact.items])
        updated = updated._replace(exact=exact)
        fits = part.fits
        return jax.tree.map(lambda new, old: jnp.where(fits, new, old), updated, state), part.needed

    def _with_rows(self, params: Params, state: State, events: Events) -> _Part:
        """Fetch the rows of all items of the users."""
        table, dim = params["embedding"][TABLE], self.config.model.dim
        shards, rows = jax.lax.axis_size(self.axis_name), table_rows(self.num_items)
        # Padding has the lowest row, so it stays id 0.
        items = (jnp.full(1, PADDING_ID, jnp.int32), events.ids, state.exact.items)
        ids = jnp.concatenate([part.reshape(-1) for part in items])
        capacity = self.config.compute.bucket_rows or bucket_capacity(len(ids), shards)
        capacity = len(ids) if self.holds_all else capacity
        exchange, places = plan_exchange(
            ids_to_rows(ids, rows), rows, shards, capacity, self.axis_name
        )
        fetched = fetch(table, exchange, len(ids), dim, self.axis_name)
        needed = jax.lax.pmax(exchange.needed, self.axis_name)
        own = {**params, "embedding": {**params["embedding"], TABLE: fetched}}
        of_events, of_exact = jnp.split(places[1:], [events.ids.size])
        events = events._replace(ids=of_events.reshape(events.ids.shape))
        exact = state.exact._replace(items=of_exact.reshape(state.exact.items.shape))
        return _Part(
            make_method(self.config, len(ids) - 1),
            own,
            state._replace(exact=exact),
            events,
            jnp.zeros_like(ids).at[places].set(ids),
            needed,
            needed <= capacity,
        )
