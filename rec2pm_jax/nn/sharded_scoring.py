"""Exact ranking over a catalogue whose rows are spread over the devices of a mesh.

Every device scores its own rows, block by block; only counts, or the k best of each device, travel.
Inside `jax.shard_map`; rows are those of `nn.item_rows`, ids those of the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.exchange import swap
from rec2pm_jax.nn.item_rows import ids_at, rows_of, take_rows
from rec2pm_jax.nn.topk import top_k
from rec2pm_jax.typing import Array

BLOCK = 8192  # rows whose scores exist at a time

Prepare = Callable[[Array], Array]  # rows [n, W] -> float32 [n, W], each row by itself


def sharded_ranks(
    queries: Array, targets: Array, table: Array, num_items: int, prepare: Prepare, axis_name: str
) -> Array:
    """Pessimistic rank of each target among all items: int32 [Q]; 0 where a score is not finite.

    Args:
      queries: float32 [Q, W], the same on all devices.
      targets: int32 [Q], ids.
      table: this device's rows, packed.
    """
    dim = queries.shape[1]
    pack = table.shape[1] // dim
    count, total, first = _extent(table, dim, axis_name)
    at = rows_of(targets, total) - first
    mine = (at >= 0) & (at < count)
    rows = prepare(take_rows(table, jnp.clip(at, 0, count - 1), dim))
    own = jax.lax.psum(jnp.where(mine, jnp.sum(queries * rows, axis=1), 0), axis_name)
    block = min(BLOCK, count)

    def add(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        ahead, finite = carry
        # The last block overlaps the one before: what it repeats does not count.
        start = jnp.minimum(i * block, count - block)
        index = start + jnp.arange(block, dtype=jnp.int32)
        ids = ids_at(first + index, total)
        real = (index >= i * block) & (ids > 0) & (ids <= num_items)
        wide = jax.lax.dynamic_slice_in_dim(table, start // pack, block // pack)
        scores = queries @ prepare(wide.reshape(block, dim)).T
        # The target itself counts once, by definition: rounding cannot lose it.
        others = real & (ids != targets[:, None])
        at_least = jnp.sum(others & (scores >= own[:, None]), axis=1, dtype=jnp.int32)
        return ahead + at_least, finite & jnp.all(jnp.isfinite(scores) | ~real, axis=1)

    start = jnp.zeros(len(queries), jnp.int32), jnp.isfinite(own)
    ahead, finite = jax.lax.fori_loop(0, -(-count // block), add, start)
    bad = jax.lax.psum(1 - finite.astype(jnp.int32), axis_name)
    return jnp.where(bad == 0, 1 + jax.lax.psum(ahead, axis_name), 0)


def sharded_top_k(
    queries: Array, table: Array, k: int, num_items: int, prepare: Prepare, axis_name: str
) -> tuple[Array, Array]:
    """The k best items of every query, best first: (scores float32 [Q, k], ids int32 [Q, k]).

    As `top_k` over the whole catalogue, except that of items with equal scores any may come first.
    Devices send each other their k best, nothing that grows with the catalogue.
    """
    found = _own_best(queries, table, k, num_items, prepare, axis_name)
    return _best_of(k, *(jax.lax.all_gather(x, axis_name, axis=1, tiled=True) for x in found))


def top_k_for_each(
    queries: Array, table: Array, k: int, num_items: int, prepare: Prepare, axis_name: str
) -> tuple[Array, Array]:
    """As `sharded_top_k`, where every device has queries [Q, W] of its own and wants their items only.

    All devices get all queries, and return to each the k best that they hold for its own.
    """
    everybody = jax.lax.all_gather(queries, axis_name, axis=0, tiled=True)
    found = _own_best(everybody, table, k, num_items, prepare, axis_name)

    def returned(x: Array) -> Array:  # [n * Q, k] -> [Q, n * k]
        x = swap(x.reshape(-1, *queries.shape[:1], x.shape[1]), axis_name)
        return jnp.swapaxes(x, 0, 1).reshape(len(queries), -1)

    return _best_of(k, *map(returned, found))


def _own_best(queries, table, k, num_items, prepare, axis_name) -> tuple[Array, Array]:
    """The best items [Q, min(k, rows)] of this device's rows: (scores, ids)."""
    count, total, first = _extent(table, queries.shape[1], axis_name)

    def allowed(index: Array) -> Array:
        ids = ids_at(first + index, total)
        return (ids > 0) & (ids <= num_items)

    best, at = top_k(queries, table, min(k, count), allowed=allowed, prepare=prepare)
    return best, ids_at(first + at, total)


def _best_of(k: int, scores: Array, ids: Array) -> tuple[Array, Array]:
    best, at = jax.lax.top_k(scores, k)
    return best, jnp.take_along_axis(ids, at, axis=1)


def _extent(table: Array, dim: int, axis_name: str) -> tuple[int, int, Array]:
    """Rows of this device, rows of all, and the first of this device's."""
    count = table.size // dim
    return count, count * jax.lax.axis_size(axis_name), count * jax.lax.axis_index(axis_name)
