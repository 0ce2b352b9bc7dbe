"""Serve from an item table that is spread over the devices of this process, never whole on one."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rec2pm_jax.config import Config
from rec2pm_jax.evaluation.sharded_catalogue import fetch_rows
from rec2pm_jax.methods.mesh_method import MeshMethod
from rec2pm_jax.methods.method import Method
from rec2pm_jax.nn.catalogue.sharded_table import rows_to_ids, table_rows
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.stream.stores.record import ModelIdentity
from rec2pm_jax.typing import Array, Params

_PART = 1 << 16  # rows on the host at a time


def identify(config: Config, params: Params, num_items: int) -> ModelIdentity:
    """Return the identity of a model, the same as with the whole table.

    Args:
      config: of the training run.
      params: as trained, with a spread table.
      num_items: items that the model was trained with.
    """
    table = params["embedding"][TABLE]

    def rows() -> Iterator[np.ndarray]:
        for begin in range(0, num_items + 1, _PART):
            ids = np.arange(begin, min(begin + _PART, num_items + 1), dtype=np.int32)
            yield fetch_rows(table, ids, config.model.dim)

    return ModelIdentity.from_params(config, params, rows())


def place(method: Method, params: Params, counts: np.ndarray) -> tuple[MeshMethod, Params]:
    """Return the method and the parameters to serve with.

    Args:
      method: over all items.
      params: with rows for all items in a spread table, which is used up.
      counts: events of each item, int [V]. Row 0 becomes the mean vector of all events and stands for
        unknown items.
    """
    table = method.network.table(params)
    mesh = table.sharding.mesh  # type: ignore[attr-defined]
    [axis] = mesh.axis_names
    dim, rows = method.config.model.dim, table_rows(method.num_items)
    shares = counts / max(1, counts.sum())

    def shares_of(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(rows)
        ids = np.asarray(rows_to_ids(np.arange(start, stop, dtype=np.int32), rows))  # type: ignore[arg-type]
        return np.where(ids < len(shares), shares[np.minimum(ids, len(shares) - 1)], 0).astype("f4")

    weights = jax.make_array_from_callback((rows,), NamedSharding(mesh, P(axis)), shares_of)

    def body(table: Array, weights: Array) -> Array:
        own, weight = table.reshape(-1, dim), weights[:, None]
        total = jnp.sum(jnp.where(weight > 0, own * weight, 0), axis=0)
        mean = jax.lax.psum(total, axis)
        row = jnp.where(jax.lax.axis_index(axis) == 0, mean, table[0, :dim])
        return table.at[0, :dim].set(row)

    mapped = jax.shard_map(body, mesh=mesh, in_specs=P(axis), out_specs=P(axis), check_vma=False)
    table = functools.partial(jax.jit, donate_argnums=0)(mapped)(table, weights)
    served = MeshMethod.of(method, mesh)
    return served, served.place(method.network.with_table(params, table))
