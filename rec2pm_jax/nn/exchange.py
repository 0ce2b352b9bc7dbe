"""Devices ask each other for rows of a sharded table, and give gradients back.

Inside `jax.shard_map` over n devices, each holding R / n consecutive rows. Every row a device needs is
asked for once; the requests to one owner fill a bucket of fixed capacity C, and all buckets travel in
one all-to-all. So a device receives the rows of its own examples, never those of the global batch.
`axis_name` None means a single device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.item_rows import take_rows
from rec2pm_jax.typing import Array


class Exchange(NamedTuple):
    """Who asks whom for what; M is the number of rows asked for, doubles included.

    Attributes:
      starts: int32 [n + 1]; unique rows [starts[s], starts[s + 1]) belong to device s.
      asked: int32 [n, C], own rows (counted from the first own) that each device asks for; R / n
        where it asks for less.
      needed: int32 scalar, the capacity that this device's largest bucket needs.
    """

    starts: Array
    asked: Array
    needed: Array


def bucket_capacity(count: int, shards: int) -> int:
    """Rows per bucket where `count` rows are asked of `shards` devices and nothing else is known.

    The mean, a quarter for uneven demand, and six standard deviations of a random spread.
    """
    mean = count / shards
    capacity = 1.25 * mean + 6 * math.sqrt(mean) + 8
    return min(count, math.ceil(capacity / 8) * 8)


def plan_exchange(
    rows: Array, table_rows: int, shards: int, capacity: int, axis_name: str | None
) -> tuple[Exchange, Array]:
    """Agrees on an exchange: (it, int32 [M] places of `rows` among the fetched ones).

    Equal rows have equal places, and places are in the order of rows. Where `needed` exceeds
    `capacity`, the rows beyond it are wrong: the caller has to check it on all devices.

    Args:
      rows: int32 [M], global rows this device needs.
      table_rows: R.
    """
    block = table_rows // shards
    unique, places = jnp.unique(
        rows, return_inverse=True, size=len(rows), fill_value=jnp.int32(table_rows)
    )
    borders = jnp.arange(shards + 1, dtype=jnp.int32) * block
    starts = jnp.searchsorted(unique, borders).astype(jnp.int32)
    slots, real = _slots(starts, capacity)
    own = unique[jnp.minimum(slots, len(rows) - 1)] - borders[:-1, None]
    asked = _swap(jnp.where(real, own, block), axis_name)
    return Exchange(starts, asked, jnp.max(jnp.diff(starts))), places.astype(jnp.int32)


def fetch(table: Array, exchange: Exchange, count: int, dim: int, axis_name: str | None) -> Array:
    """The unique rows asked for, [count, D], filled up with zeros.

    table: this device's part, packed as in `nn.item_rows`; dim: D.
    """
    starts, asked, _ = exchange
    shards, capacity = asked.shape
    answers = _swap(take_rows(table, asked, dim), axis_name)
    place = jnp.arange(count, dtype=jnp.int32)
    owner = jnp.searchsorted(starts[1:], place, side="right").astype(jnp.int32)
    owner = jnp.minimum(owner, shards - 1)
    slot = jnp.clip(place - starts[owner], 0, capacity - 1)
    real = place < starts[-1]
    return jnp.where(real[:, None], answers[owner, slot], 0)


def give_back(
    gradients: Array, exchange: Exchange, block: int, axis_name: str | None
) -> tuple[Array, Array]:
    """Gradients of fetched rows [count, D] go to their owners and are summed there.

    Returns:
      (own rows int32 [n * C], ascending and different, at or above `block` = R / n where there are no
      more; summed gradients [n * C, D], 0 there).
    """
    starts, asked, _ = exchange
    slots, real = _slots(starts, asked.shape[1])
    outgoing = gradients[jnp.minimum(slots, len(gradients) - 1)]
    received = _swap(jnp.where(real[..., None], outgoing, 0), axis_name)
    received = received.reshape(-1, gradients.shape[1])
    rows, group = jnp.unique(
        asked.reshape(-1), return_inverse=True, size=asked.size, fill_value=jnp.int32(block)
    )
    summed = jax.ops.segment_sum(received, group, num_segments=asked.size)
    # Different numbers where there is no row: a scatter may then be told that indices are unique.
    spare = block + jnp.arange(asked.size, dtype=jnp.int32)
    return jnp.where(rows < block, rows, spare), summed


def _slots(starts: Array, capacity: int) -> tuple[Array, Array]:
    """Place of each bucket's rows [n, C], and which of them are real."""
    slots = starts[:-1, None] + jnp.arange(capacity, dtype=jnp.int32)
    return slots, slots < starts[1:, None]


def _swap(x: Array, axis_name: str | None) -> Array:
    """x[s] of device d becomes x[d] of device s."""
    return x if axis_name is None else jax.lax.all_to_all(x, axis_name, 0, 0, tiled=True)
