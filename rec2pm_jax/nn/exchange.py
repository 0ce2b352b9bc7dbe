"""Devices ask each other for rows of a sharded table, and give gradients back.

Inside `jax.shard_map` over n devices, each holding R / n consecutive rows. Every row a device needs is
asked for once; the requests to one owner fill a bucket of fixed capacity C, and all buckets travel
together (`swap`). So a device receives the rows of its own examples, never those of the global batch.
`axis_name` None means a single device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.nn.item_rows import take_rows
from rec2pm_jax.typing import Array

MOST_PEERS = 16  # of an all-to-all in one step


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
    unique, places = _unique(rows, table_rows)
    borders = jnp.arange(shards + 1, dtype=jnp.int32) * block
    starts = jnp.searchsorted(unique, borders).astype(jnp.int32)
    slots, real = _slots(starts, capacity)
    own = unique[jnp.minimum(slots, len(rows) - 1)] - borders[:-1, None]
    asked = swap(jnp.where(real, own, block), axis_name)
    return Exchange(starts, asked, jnp.max(jnp.diff(starts))), places


def fetch(table: Array, exchange: Exchange, count: int, dim: int, axis_name: str | None) -> Array:
    """The unique rows asked for, [count, W], filled up with zeros.

    table: this device's part, packed as in `nn.item_rows`; dim: D.
    """
    starts, asked, _ = exchange
    shards, capacity = asked.shape
    answers = swap(take_rows(table, asked, dim), axis_name)
    place = jnp.arange(count, dtype=jnp.int32)
    owner = jnp.searchsorted(starts[1:], place, side="right").astype(jnp.int32)
    owner = jnp.minimum(owner, shards - 1)
    slot = jnp.clip(place - starts[owner], 0, capacity - 1)
    real = place < starts[-1]
    return jnp.where(real[:, None], answers[owner, slot], 0)


def return_gradients(
    gradients: Array, exchange: Exchange, block: int, axis_name: str | None
) -> tuple[Array, Array]:
    """Gradients of fetched rows [count, W] go to their owners and are summed there.

    Returns:
      (own rows int32 [n * C], ascending and different, at or above `block` = R / n where there are no
      more; summed gradients [n * C, W], 0 there).
    """
    starts, asked, _ = exchange
    slots, real = _slots(starts, asked.shape[1])
    outgoing = gradients[jnp.minimum(slots, len(gradients) - 1)]
    received = swap(jnp.where(real[..., None], outgoing, 0), axis_name)
    received = received.reshape(-1, gradients.shape[1])
    rows, group = _unique(asked.reshape(-1), block)
    summed = jax.ops.segment_sum(received, group, num_segments=asked.size)
    # Different numbers where there is no row: a scatter may then be told that indices are unique.
    spare = block + jnp.arange(asked.size, dtype=jnp.int32)
    return jnp.where(rows < block, rows, spare), summed


def _slots(starts: Array, capacity: int) -> tuple[Array, Array]:
    """Place of each bucket's rows [n, C], and which of them are real."""
    slots = starts[:-1, None] + jnp.arange(capacity, dtype=jnp.int32)
    return slots, slots < starts[1:, None]


def _unique(values: Array, fill: int) -> tuple[Array, Array]:
    """Different values int32 [M], ascending and filled up, and the place of each value among them.

    As `jnp.unique`, with one sort: each costs a TPU's compiler seconds. It need not be stable, as equal
    values have equal places.
    """
    number = jnp.arange(len(values), dtype=jnp.int32)
    ordered, index = jax.lax.sort((values, number), num_keys=1, is_stable=False)
    place = jnp.cumsum(jnp.diff(ordered, prepend=ordered[:1]) != 0, dtype=jnp.int32)
    unique = jnp.full_like(values, fill).at[place].set(ordered, indices_are_sorted=True)
    return unique, jnp.zeros_like(place).at[index].set(place, unique_indices=True)


def swap(x: Array, axis_name: str | None) -> Array:
    """x[s] of device d becomes x[d] of device s.

    Between many devices in two steps: first within groups of neighbours, whose members then pass on
    what is for their counterparts in the other groups. A device talks to about 2 * sqrt(n) others in
    messages sqrt(n) times as large, and sends everything twice. A TPU's compiler takes 10 s for one
    all-to-all of 256 chips and 1 s for these two.
    """
    if axis_name is None:
        return x
    shards = len(x)
    if shards <= MOST_PEERS:
        return jax.lax.all_to_all(x, axis_name, 0, 0, tiled=True)
    near = 1 << (shards.bit_length() // 2)  # shards are a power of two, see `check_shards`
    groups = np.arange(shards).reshape(-1, near)
    x = x.reshape(*groups.shape, *x.shape[1:])
    for axis, members in ((1, groups), (0, groups.T)):
        x = jax.lax.all_to_all(
            x, axis_name, axis, axis, axis_index_groups=members.tolist(), tiled=True
        )
    return x.reshape(shards, *x.shape[2:])
