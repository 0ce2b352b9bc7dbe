"""Devices exchange rows of a sharded table, and send gradients back.

These functions run inside `jax.shard_map` over n devices, each of which holds R / n consecutive rows.
A device requests each row it needs once. Its requests to one owner fill a bucket of fixed capacity C,
and all buckets travel together (`all_to_all`). So a device receives the rows of its own examples, not
those of the global batch. `axis_name` None means a single device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows, table_rows, take_rows
from rec2pm_jax.typing import Array

MAX_PEERS = 16  # of an all-to-all in one step


class Exchange(NamedTuple):
    """Which rows each device sends to which.

    Attributes:
      starts: int32 [n + 1]; unique rows [starts[s], starts[s + 1]) belong to device s.
      requested: int32 [n, C], this device's rows that each device requests, counted from its first one;
        R / n fills up a bucket.
      needed: int32 scalar, the capacity that this device's largest bucket needs.
    """

    starts: Array  # n+1
    requested: Array  # n C
    needed: Array


def bucket_capacity(count: int, shards: int) -> int:
    """Return how many rows a bucket holds if nothing is known about the demand.

    It is the mean, a quarter more for uneven demand, and six standard deviations of a random spread.

    Args:
      count: rows that a device requests.
      shards: devices that hold them.

    >>> bucket_capacity(12_000, 16)
    1112
    """
    mean = count / shards
    capacity = 1.25 * mean + 6 * math.sqrt(mean) + 8
    return min(count, math.ceil(capacity / 8) * 8)


def plan_exchange(
    rows: Array, table_rows: int, shards: int, capacity: int, axis_name: str | None
) -> tuple[Exchange, Array]:
    """Plan an exchange together with the other devices.

    If `needed` exceeds `capacity`, the rows beyond it are wrong: the caller has to check it on all
    devices.

    Args:
      rows: int32 [M], rows of the whole table that this device needs; doubles are allowed.
      table_rows: R.
      shards: n.
      capacity: C.
      axis_name: of the devices.

    Returns:
      (the plan, int32 [M] places of `rows` among the fetched ones). Equal rows have equal places, and
      places are in the order of rows.
    """
    block = table_rows // shards
    unique, places = _unique(rows, table_rows)
    borders = jnp.arange(shards + 1, dtype=jnp.int32) * block
    starts = jnp.searchsorted(unique, borders).astype(jnp.int32)
    slots, real = _bucket_slots(starts, capacity)
    own = unique[jnp.minimum(slots, len(rows) - 1)] - borders[:-1, None]
    requested = all_to_all(jnp.where(real, own, block), axis_name)
    return Exchange(starts, requested, jnp.max(jnp.diff(starts))), places


def fetch(table: Array, exchange: Exchange, count: int, dim: int, axis_name: str | None) -> Array:
    """Fetch the rows of a plan.

    Args:
      table: this device's part, packed as in `sharded_table`.
      exchange: the plan.
      count: M.
      dim: numbers of a row, D.
      axis_name: of the devices.

    Returns:
      [M, D], the unique rows in ascending order, then zeros.
    """
    starts, requested, _ = exchange
    shards, capacity = requested.shape
    answers = all_to_all(take_rows(table, requested, dim), axis_name)
    place = jnp.arange(count, dtype=jnp.int32)
    owner = jnp.searchsorted(starts[1:], place, side="right").astype(jnp.int32)
    owner = jnp.minimum(owner, shards - 1)
    slot = jnp.clip(place - starts[owner], 0, capacity - 1)
    real = place < starts[-1]
    return jnp.where(real[:, None], answers[owner, slot], 0)


def return_gradients(
    gradients: Array, exchange: Exchange, block: int, axis_name: str | None
) -> tuple[Array, Array]:
    """Send gradients of fetched rows to their owners, which sum them.

    Args:
      gradients: [M, D], of what `fetch` returned.
      exchange: the plan.
      block: rows of a device, R / n.
      axis_name: of the devices.

    Returns:
      (rows int32 [n * C], summed gradients [n * C, D]). Rows are this device's, ascending and distinct.
      Unused entries have numbers from `block` on and gradient 0.
    """
    starts, requested, _ = exchange
    slots, real = _bucket_slots(starts, requested.shape[1])
    outgoing = gradients[jnp.minimum(slots, len(gradients) - 1)]
    received = all_to_all(jnp.where(real[..., None], outgoing, 0), axis_name)
    received = received.reshape(-1, gradients.shape[1])
    rows, group = _unique(requested.reshape(-1), block)
    summed = jax.ops.segment_sum(received, group, num_segments=requested.size)
    # Distinct numbers in unused entries: a scatter may then be promised that indices are unique.
    spare = block + jnp.arange(requested.size, dtype=jnp.int32)
    return jnp.where(rows < block, rows, spare), summed


def _bucket_slots(starts: Array, capacity: int) -> tuple[Array, Array]:
    """Return (places of each bucket's rows among the unique ones [n, C], which of them are real)."""
    slots = starts[:-1, None] + jnp.arange(capacity, dtype=jnp.int32)
    return slots, slots < starts[1:, None]


def _unique(values: Array, fill: int) -> tuple[Array, Array]:
    """Return (distinct values int32 [M], ascending, then `fill`; the place of each value there).

    It works like `jnp.unique` with one sort, since each sort costs a TPU's compiler seconds. The sort
    need not be stable, as equal values have equal places.
    """
    number = jnp.arange(len(values), dtype=jnp.int32)
    ordered, index = jax.lax.sort((values, number), num_keys=1, is_stable=False)
    place = jnp.cumsum(jnp.diff(ordered, prepend=ordered[:1]) != 0, dtype=jnp.int32)
    unique = jnp.full_like(values, fill).at[place].set(ordered, indices_are_sorted=True)
    return unique, jnp.zeros_like(place).at[index].set(place, unique_indices=True)


def all_to_all(x: Array, axis_name: str | None) -> Array:
    """Send x[s] of device d to device s, where it becomes x[d].

    Between many devices it takes two steps: first within groups of neighbours, whose members then pass
    on to the other groups what is meant for them. A device communicates with about 2 * sqrt(n) others,
    in messages sqrt(n) times as large, and sends everything twice. A TPU's compiler takes 10 s for one
    all-to-all of 256 chips and 1 s for these two.

    Args:
      x: [n, ...].
      axis_name: of the devices.
    """
    if axis_name is None:
        return x
    shards = len(x)
    if shards <= MAX_PEERS:
        return jax.lax.all_to_all(x, axis_name, 0, 0, tiled=True)
    near = 1 << (shards.bit_length() // 2)  # shards are a power of two, see `check_shards`
    groups = np.arange(shards).reshape(-1, near)
    x = x.reshape(*groups.shape, *x.shape[1:])
    for axis, members in ((1, groups), (0, groups.T)):
        x = jax.lax.all_to_all(
            x, axis_name, axis, axis, axis_index_groups=members.tolist(), tiled=True
        )
    return x.reshape(shards, *x.shape[2:])


def fetch_all(table: Array, ids: Array, num_items: int, dim: int, axis_name: str) -> Array:
    """Fetch the rows of items, each device those of its own; no bucket overflows.

    Buckets have room for all of them, so this is for few rows.

    Args:
      table: this device's rows, packed.
      ids: int32 [...], item ids.
      num_items: items of the catalogue.
      dim: numbers of a row.
      axis_name: of the devices.

    Returns:
      [..., dim].
    """
    rows, shards, count = table_rows(num_items), jax.lax.axis_size(axis_name), ids.size
    at = ids_to_rows(ids.reshape(-1), rows)
    exchange, places = plan_exchange(at, rows, shards, count, axis_name)
    return fetch(table, exchange, count, dim, axis_name)[places].reshape(*ids.shape, dim)
