"""Evaluate over a sharded item table: fetch rows, rank targets, and find the best items.

The table is a global array over a mesh, see `nn.catalogue.sharded_table`. Every process of the job
makes the same calls, with its own queries. A device holds some of the queries and some of the rows: all
devices gather a batch of queries, and each scores its rows for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rec2pm_jax.config import LossConfig
from rec2pm_jax.nn.catalogue.filters import ItemFilter
from rec2pm_jax.nn.catalogue.losses import to_item_vectors, to_queries
from rec2pm_jax.nn.catalogue.row_exchange import fetch_all
from rec2pm_jax.nn.catalogue.sharded_scoring import best_per_device, sharded_ranks
from rec2pm_jax.typing import Array, Readout

_IDS = 1024  # rows that a device asks for in one call
_QUERIES = 256  # queries of all devices that are scored in one call
_OWN_ROWS = 1 << 15  # rows of own items that a device fetches in one call

Seen = Callable[
    [np.ndarray], np.ndarray
]  # which queries, int [B] -> ids to leave out, int32 [B, X]


def fetch_rows(table: Array, ids: np.ndarray, dim: int) -> np.ndarray:
    """Fetch rows of the table.

    Args:
      table: the sharded item table.
      ids: int32 [n], item ids; every process has its ids, and n may differ.
      dim: D, numbers per item.

    Returns:
      float [n, dim], the rows of this process's ids.
    """
    mesh = _mesh_of(table)
    compute = functools.partial(_fetch, mesh, dim, table)
    parts = [
        compute_batch(mesh, compute, ids[batch].astype(np.int32))
        for batch in _batches(mesh, len(ids), _IDS)
    ]
    return np.concatenate(parts)[: len(ids)]


def ranks(
    loss: LossConfig,
    table: Array,
    num_items: int,
    readout: Readout,
    targets: np.ndarray,
    seen: Seen | None = None,
) -> np.ndarray:
    """Return the pessimistic rank of each target of this process among all items.

    Args:
      loss: how logits are computed from vectors and rows.
      table: the sharded item table.
      num_items: number of items, without padding.
      readout: outputs of a method, T rows; T may differ between processes, and nothing else.
      targets: int32 [T], item ids.
      seen: returns the items that are left out of each ranking; a target among them comes last.

    Returns:
      int64 [T], ranks from 1; 0 marks a row with a non-finite score.
    """
    mesh = _mesh_of(table)
    compute = functools.partial(_ranks, mesh, loss, num_items, table)
    found = []
    for batch in _batches(mesh, len(targets), max(1, _QUERIES // mesh.size)):
        asked = jax.tree.map(lambda a, b=batch: a[b], (readout, targets))
        found.append(compute_batch(mesh, compute, *asked, seen and seen(batch)))
    return np.concatenate(found)[: len(targets)].astype(np.int64)


def best(
    loss: LossConfig,
    table: Array,
    num_items: int,
    readout: Readout,
    k: int,
    seen: Seen | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best items of each row of this process, see `best_per_device`.

    Args:
      loss, table, num_items, readout, seen: as for `ranks`.
      k: number of items.

    Returns:
      Scores float32 [T, k] and ids int32 [T, k], best first; -inf where no item is left.

    Raises:
      ValueError: k is not between 1 and the number of items.
    """
    if not 1 <= k <= num_items:
        raise ValueError(f"k={k} must be between 1 and the {num_items} items.")
    mesh = _mesh_of(table)
    own = 1 if readout.own is None else readout.own.ids.shape[1]
    compute = functools.partial(_best, mesh, loss, num_items, k, table)
    count = len(readout.vectors)
    size = max(1, min(_QUERIES // mesh.size, _OWN_ROWS // max(own, 1)))
    found = []
    for batch in _batches(mesh, count, size):
        asked = jax.tree.map(lambda a, b=batch: a[b], readout)
        found.append(compute_batch(mesh, compute, asked, seen and seen(batch)))
    scores, ids = (np.concatenate(parts)[:count] for parts in zip(*found, strict=True))
    return scores, ids


def compute_batch(mesh: Mesh, compute: Callable[..., Any], *inputs: Any) -> Any:
    """Call a function of arrays whose rows are divided over the devices of a mesh.

    Args:
      mesh: with one axis.
      compute: a compiled function; its results are divided likewise.
      inputs: trees of numpy arrays, the rows of this process. Each of its devices gets as many.

    Returns:
      The results as numpy arrays, the rows of this process.
    """
    sharding = NamedSharding(mesh, P(mesh.axis_names[0]))
    put = functools.partial(jax.make_array_from_process_local_data, sharding)
    return jax.tree.map(_rows_of_process, compute(*jax.tree.map(put, inputs)))


def _rows_of_process(array: Array) -> np.ndarray:
    mine = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in mine])


def _batches(mesh: Mesh, count: int, size: int) -> Iterator[np.ndarray]:
    """Cut `count` rows of this process into as many batches as every process has.

    Args:
      size: rows of a batch on one device. Batches are padded with row 0.
    """
    size *= len(mesh.local_devices)
    most = count
    if jax.process_count() > 1:
        most = int(multihost_utils.process_allgather(np.int32(count)).max())
    for begin in range(0, most, size):
        batch = np.arange(begin, begin + size)
        yield np.where(batch < count, batch, 0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fetch(mesh: Mesh, dim: int, table: Array, ids: Array) -> Array:
    [axis] = mesh.axis_names
    last = table.size // dim - 1  # as many items have so many rows

    def body(table: Array, ids: Array) -> Array:
        return fetch_all(table, ids, last, dim, axis)

    return _map(body, mesh, (P(axis), P(axis)), P(axis))(table, ids)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ranks(
    mesh: Mesh,
    loss: LossConfig,
    num_items: int,
    table: Array,
    readout: Readout,
    targets: Array,
    seen: Array | None,
) -> Array:
    [axis] = mesh.axis_names

    def body(table: Array, *asked: Any) -> Array:
        gather = functools.partial(jax.lax.all_gather, axis_name=axis, tiled=True)
        readout, targets, seen = jax.tree.map(gather, asked)
        queries = to_queries(loss, readout.vectors)
        found = sharded_ranks(
            queries, targets, table, num_items, to_item_vectors, axis, readout.own, seen
        )
        here = len(found) // mesh.size
        return jax.lax.dynamic_slice_in_dim(found, here * jax.lax.axis_index(axis), here)

    return _map(body, mesh, P(axis), P(axis))(table, readout, targets, seen)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _best(
    mesh: Mesh,
    loss: LossConfig,
    num_items: int,
    k: int,
    table: Array,
    readout: Readout,
    seen: Array | None,
) -> tuple[Array, Array]:
    [axis] = mesh.axis_names

    def body(table: Array, readout: Readout, seen: Array | None) -> tuple[Array, Array]:
        queries, own = to_queries(loss, readout.vectors), None
        if readout.own is not None:
            rows = fetch_all(table, readout.own.ids, num_items, queries.shape[1], axis)
            own = readout.own, to_item_vectors(rows)
        rule = ItemFilter(denied=seen)
        return best_per_device(queries, table, k, num_items, to_item_vectors, axis, rule, own)

    return _map(body, mesh, P(axis), P(axis))(table, readout, seen)


def _map(body: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _mesh_of(table: Array) -> Mesh:
    """Return the mesh over which the table is spread."""
    assert isinstance(table.sharding, NamedSharding) and isinstance(table.sharding.mesh, Mesh)
    return table.sharding.mesh
