"""Evaluate over a sharded item table: fetch rows, rank targets, and find the best items.

The table is a global array over a mesh, see `nn.catalogue.sharded_table`. Every process of the job
makes the same calls. Arguments are the same in every process unless a function says otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rec2pm_jax.config import LossConfig
from rec2pm_jax.nn.catalogue.losses import to_item_vectors, to_queries
from rec2pm_jax.nn.catalogue.row_exchange import fetch, plan_exchange
from rec2pm_jax.nn.catalogue.sharded_scoring import sharded_ranks, sharded_top_k
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows
from rec2pm_jax.typing import Array, Readout

_IDS = 1024  # rows that a device asks for in one call
_QUERIES = 256  # queries that are ranked in one call


def fetch_rows(table: Array, ids: np.ndarray, dim: int) -> np.ndarray:
    """Fetch rows of the table.

    Args:
      table: the sharded item table.
      ids: int [n], item ids; every process has its ids, and n may differ.
      dim: D, numbers per item.

    Returns:
      float [n, dim], the rows of this process's ids.
    """
    mesh = _mesh_of(table)
    local = len(mesh.local_devices)
    calls = -(-_largest_count(len(ids)) // (local * _IDS))
    padded = np.zeros(calls * local * _IDS, np.int32)
    padded[: len(ids)] = ids
    sharding = NamedSharding(mesh, P(mesh.axis_names[0]))
    parts = []
    for part in padded.reshape(calls, local, _IDS):
        asked = jax.make_array_from_process_local_data(sharding, part)
        rows = _fetch(mesh, dim, table, asked)
        mine = sorted(rows.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        parts += [np.asarray(shard.data).reshape(_IDS, -1) for shard in mine]
    return np.concatenate(parts)[: len(ids)]


def ranks(
    loss: LossConfig, table: Array, num_items: int, readout: Readout, targets: np.ndarray
) -> np.ndarray:
    """Return the pessimistic rank of each target among all items.

    Args:
      loss: how logits are computed from vectors and rows.
      table: the sharded item table.
      num_items: number of items, without padding.
      readout: outputs of a method, T rows.
      targets: int32 [T], item ids.

    Returns:
      int64 [T], ranks from 1; 0 marks a row with a non-finite score.
    """
    size = min(_QUERIES, len(targets))
    result = []
    for begin in range(0, len(targets), size):
        part = np.arange(begin, begin + size) % len(targets)
        asked = jax.tree.map(lambda a, p=part: a[p], (readout, targets))
        found = _ranks(_mesh_of(table), loss, num_items, table, *asked)
        result.append(np.asarray(found)[: len(targets) - begin])
    return np.concatenate(result).astype(np.int64)


def best(
    loss: LossConfig, table: Array, num_items: int, vectors: np.ndarray, k: int
) -> tuple[Array, Array]:
    """Return the k best items of each vector.

    Args:
      loss: how logits are computed from vectors and rows.
      table: the sharded item table.
      num_items: number of items, without padding.
      vectors: float32 [B, D], outputs of a method.
      k: number of items.

    Returns:
      Scores float32 [B, k] and ids int32 [B, k], best first.

    Raises:
      ValueError: k is not between 1 and the number of items.
    """
    if not 1 <= k <= num_items:
        raise ValueError(f"k={k} must be between 1 and the {num_items} items.")
    return _best(_mesh_of(table), loss, num_items, k, table, vectors)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fetch(mesh: Mesh, dim: int, table: Array, ids: Array) -> Array:
    [axis] = mesh.axis_names

    def body(table: Array, ids: Array) -> Array:
        count, rows = ids.size, table.size // dim * mesh.size
        at = ids_to_rows(ids.reshape(-1), rows)
        exchange, places = plan_exchange(at, rows, mesh.size, count, axis)
        return fetch(table, exchange, count, dim, axis)[places][None]

    return _map(body, mesh, (P(axis), P(axis)), P(axis))(table, ids)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ranks(
    mesh: Mesh, loss: LossConfig, num_items: int, table: Array, readout: Readout, targets: Array
) -> Array:
    [axis] = mesh.axis_names

    def body(table: Array, readout: Readout, targets: Array) -> Array:
        queries = to_queries(loss, readout.vectors)
        return sharded_ranks(queries, targets, table, num_items, to_item_vectors, axis, readout.own)

    return _map(body, mesh, (P(axis), P(), P()), P())(table, readout, targets)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _best(
    mesh: Mesh, loss: LossConfig, num_items: int, k: int, table: Array, vectors: Array
) -> tuple[Array, Array]:
    [axis] = mesh.axis_names

    def body(table: Array, vectors: Array) -> tuple[Array, Array]:
        queries = to_queries(loss, vectors)
        return sharded_top_k(queries, table, k, num_items, to_item_vectors, axis)

    return _map(body, mesh, (P(axis), P()), (P(), P()))(table, vectors)


def _map(body: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _mesh_of(table: Array) -> Mesh:
    """Return the mesh over which the table is spread."""
    assert isinstance(table.sharding, NamedSharding) and isinstance(table.sharding.mesh, Mesh)
    return table.sharding.mesh


def _largest_count(count: int) -> int:
    """Return the largest `count` of any process."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(jnp.int32(count)).max())
