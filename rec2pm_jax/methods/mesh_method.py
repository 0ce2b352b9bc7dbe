"""A method whose item table is spread over a mesh, behind the interface of `Method`.

Code that serves users by `Method.update`, `Method.read` and `Method.best` serves them from a sharded
table with a `MeshMethod`. The users of a call are divided over the devices, and each device scores its
rows for all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.sessions import Session
from rec2pm_jax.methods.sharded_serving import ShardedServing
from rec2pm_jax.nn.catalogue.filters import NO_FILTER, ItemFilter
from rec2pm_jax.nn.catalogue.losses import to_item_vectors, to_queries
from rec2pm_jax.nn.catalogue.row_exchange import fetch_all
from rec2pm_jax.nn.catalogue.sharded_scoring import best_per_device
from rec2pm_jax.typing import Array, Events, Params, Readout, State


@dataclasses.dataclass(frozen=True)
class MeshMethod(Method):
    """A method for serving from a sharded table. Parameters are those of `place`.

    It has no losses, no logits of the whole catalogue, no sessions and no one-pass compression.

    Attributes:
      mesh: with one axis, over which the table is spread.
    """

    mesh: Mesh = None  # type: ignore[assignment]  # fields of `Method` have defaults

    @classmethod
    def of(cls, method: Method, mesh: Mesh) -> MeshMethod:
        """Return a method over all items as one whose table is spread over `mesh`."""
        fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(Method)}
        return cls(**fields | {"compressor": None}, mesh=mesh)

    @property
    def spans_devices(self) -> bool:
        return True

    def place(self, params: Params) -> Params:
        """Return parameters for the functions of this method: the same on every device, but the table.

        Args:
          params: with the table spread over the mesh.
        """
        table, everywhere = self.network.table(params), NamedSharding(self.mesh, P())
        rest = jax.device_put(self.network.with_table(params, jnp.zeros(0)), everywhere)
        return self.network.with_table(rest, table)

    def update(
        self,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        next_time: Array | None = None,
    ) -> State:
        """Do as `Method.update`."""
        if not self.stores_memory:
            return state

        def body(params: Params, *users: Any) -> State:
            return self._serving.update(params, *users)[0]

        return self._over_users(body, params, (state, events, valid, next_time))

    def read(
        self,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        request_time: Array | None = None,
    ) -> Readout:
        """Do as `Method.read`."""
        return self._over_users(self._serving.read, params, (state, events, valid, request_time))

    def catalogue(self, params: Params) -> Array:
        """Return the item table as it is: each device prepares its rows in every call."""
        return self.network.table(params)

    def best(
        self,
        params: Params,
        readout: Readout,
        k: int,
        catalogue: Array | None = None,
        rule: ItemFilter = NO_FILTER,
    ) -> tuple[Array, Array]:
        """Do as `Method.best`; `best_per_device` says which of equal items come first."""
        config, axis = self.config, self.mesh.axis_names[0]
        blocked = rule.blocked

        def body(params: Params, readout: Readout, rule: ItemFilter) -> tuple[Array, Array]:
            table, own = self.network.table(params), None
            queries = to_queries(config.loss, readout.vectors)
            if readout.own is not None:
                rows = fetch_all(table, readout.own.ids, self.num_items, config.model.dim, axis)
                own = readout.own, to_item_vectors(rows)
            rule = rule._replace(blocked=blocked)
            return best_per_device(
                queries, table, k, self.num_items, to_item_vectors, axis, rule, own
            )

        return self._over_users(body, params, (readout, rule._replace(blocked=None)))

    def score(self, params: Params, readout: Readout, catalogue: Array | None = None) -> NoReturn:
        """Refuse: no device holds the logits of the whole catalogue."""
        raise NotImplementedError("a sharded table has no logits of the whole catalogue")

    def open_session(self, *_: Any, **__: Any) -> tuple[Session, Readout]:
        """Refuse: sessions read the table on one device."""
        raise NotImplementedError("a sharded table has no sessions")

    @property
    def _serving(self) -> ShardedServing:
        [axis] = self.mesh.axis_names
        return ShardedServing(self.config, self.num_items, axis, holds_all=True)

    def _over_users(self, body: Callable[..., Any], params: Params, users: Any) -> Any:
        """Call body(params, *users) with the users divided over the devices.

        Args:
          users: trees of arrays [B, ...]; they are padded to a multiple of the devices.
        """
        [axis] = self.mesh.axis_names
        leaves = jax.tree.leaves(users)
        count = leaves[0].shape[0]
        room = -count % self.mesh.size

        def pad(array: Array) -> Array:
            return jnp.pad(array, ((0, room),) + ((0, 0),) * (array.ndim - 1), mode="edge")

        by_rows: Any = P(axis)
        specs = self.network.with_table(jax.tree.map(lambda _: P(), params), by_rows)
        mapped = jax.shard_map(
            body,
            mesh=self.mesh,
            in_specs=(specs, *(P(axis) for _ in users)),
            out_specs=P(axis),
            check_vma=False,
        )
        results = mapped(params, *jax.tree.map(pad, users))
        return jax.tree.map(lambda array: array[:count], results)
