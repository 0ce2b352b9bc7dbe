"""The catalogue of a sharded item table, for evaluation: rows on request, ranks and the best items.

The table is a global array over a mesh (see `nn.catalogue`). Every process of the job has to make the
same calls, each with arguments of its own where that is said.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rec2pm_jax.config import LossConfig
from rec2pm_jax.nn.catalogue.losses import to_item_vectors, to_queries
from rec2pm_jax.nn.catalogue.row_exchange import fetch, plan_exchange
from rec2pm_jax.nn.catalogue.sharded_scoring import sharded_ranks, sharded_top_k
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows
from rec2pm_jax.typing import Array

_IDS = 1024  # rows that a device asks for in one call
_QUERIES = 256  # queries that are ranked in one call


def lookup(table: Array, ids: np.ndarray, dim: int) -> np.ndarray:
    """Rows of this process's `ids` [n] (others may have other numbers of them): float [n, dim]."""
    mesh = table.sharding.mesh
    local = len(mesh.local_devices)
    calls = -(-_most(len(ids)) // (local * _IDS))
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
    loss: LossConfig, table: Array, num_items: int, vectors: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Pessimistic ranks of targets [T] among all items: int64 [T]; 0 where a score is not finite.

    vectors: float32 [T, W], outputs of a method; all arguments are the same in every process.
    """
    size = min(_QUERIES, len(targets))
    result = []
    for begin in range(0, len(targets), size):
        part = np.arange(begin, begin + size) % len(targets)
        found = _ranks(table.sharding.mesh, loss, num_items, table, vectors[part], targets[part])
        result.append(np.asarray(found)[: len(targets) - begin])
    return np.concatenate(result).astype(np.int64)


def best(
    loss: LossConfig, table: Array, num_items: int, vectors: np.ndarray, k: int
) -> tuple[Array, Array]:
    """The k best items of vectors [B, W]: (scores float32 [B, k], ids int32 [B, k]), best first.

    Raises:
      ValueError: k is not between 1 and the number of items.
    """
    if not 1 <= k <= num_items:
        raise ValueError(f"k={k} must be between 1 and the {num_items} items.")
    return _best(table.sharding.mesh, loss, num_items, k, table, vectors)


def _fetch(mesh, dim, table, ids):
    [axis] = mesh.axis_names

    def body(table, ids):
        count, rows = ids.size, table.size // dim * mesh.size
        at = ids_to_rows(ids.reshape(-1), rows)
        exchange, places = plan_exchange(at, rows, mesh.size, count, axis)
        return fetch(table, exchange, count, dim, axis)[places][None]

    return _map(body, mesh, (P(axis), P(axis)), P(axis))(table, ids)


def _ranks(mesh, loss, num_items, table, vectors, targets):
    [axis] = mesh.axis_names

    def body(table, vectors, targets):
        queries, transform = to_queries(loss, vectors), to_item_vectors
        return sharded_ranks(queries, targets, table, num_items, transform, axis)

    return _map(body, mesh, (P(axis), P(), P()), P())(table, vectors, targets)


def _best(mesh, loss, num_items, k, table, vectors):
    [axis] = mesh.axis_names

    def body(table, vectors):
        queries, transform = to_queries(loss, vectors), to_item_vectors
        return sharded_top_k(queries, table, k, num_items, transform, axis)

    return _map(body, mesh, (P(axis), P()), (P(), P()))(table, vectors)


def _map(body, mesh, in_specs, out_specs):
    return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _most(count: int) -> int:
    """The largest `count` of any process."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(jnp.int32(count)).max())
