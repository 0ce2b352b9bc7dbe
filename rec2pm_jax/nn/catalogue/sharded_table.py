"""The item table whose rows are spread over devices: where a row is, and how rows are packed.

Ids count items by popularity, so neighbouring ids must not share a device. The table is cut into
`SLICES` slices of equally many rows. Device d of n holds slices [d, d + 1) * SLICES / n. Slices of
consecutive ids are a golden section apart, which spreads every run of ids evenly for any n. A row
depends on the id and the size of the catalogue only, so 2 devices can read a table written by 4.

A row narrower than the 128 lanes of a TPU register would be padded, or transposed in every step. So
128 // D neighbouring rows are stored side by side: a packed table of R rows is [R / n, n * D] with
n = 128 // D.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.embedding import ITEM_SCALE
from rec2pm_jax.typing import Array, PRNGKey

SLICES = 4096  # the number of devices must divide it
_STRIDE = 2531  # odd, so prime to SLICES; SLICES / golden ratio
_INVERSE = pow(_STRIDE, -1, SLICES)
_LANES = 128
_DRAWN = 1 << 16  # rows of a new table that are drawn at a time


def table_rows(num_items: int) -> int:
    """Return the rows R of a table: `num_items` and padding, rounded up to whole slices.

    >>> table_rows(5000)
    8192
    """
    return -(-(num_items + 1) // SLICES) * SLICES


def ids_to_rows(ids: Array, rows: int) -> Array:
    """Return the rows of ids in a table with `rows` rows: int32, same shape; id 0 has row 0."""
    return (ids % SLICES) * _STRIDE % SLICES * (rows // SLICES) + ids // SLICES


def rows_to_ids(index: Array, rows: int) -> Array:
    """Invert `ids_to_rows`; unused rows get ids above the catalogue."""
    depth = rows // SLICES
    return index % depth * SLICES + index // depth * _INVERSE % SLICES


def rows_per_line(dim: int) -> int:
    """Return how many rows of width `dim` are stored side by side, a power of two.

    >>> rows_per_line(48)
    2
    """
    return 1 << max(0, (_LANES // dim).bit_length() - 1)


def packed_shape(rows: int, dim: int) -> tuple[int, int]:
    """Return the shape of a packed table of `rows` rows of width `dim`."""
    return rows // rows_per_line(dim), rows_per_line(dim) * dim


def is_spread(table: Any) -> bool:
    """Return whether an item table is spread over the devices of a mesh, which may be a single one."""
    sharding = getattr(table, "sharding", None)
    return isinstance(sharding, NamedSharding) and any(sharding.spec)


def check_shards(shards: int, dim: int) -> None:
    """Check that devices can share a table.

    Args:
      shards: number of devices.
      dim: numbers of an item.

    Raises:
      UserError: the table cannot be split into that many parts.
    """
    most = SLICES // rows_per_line(dim)
    if most % shards:
        raise UserError(
            f"config.model.table=sharded over {shards} devices: their number must divide {most} where "
            f"an item has {dim} numbers; choose a power of two (config.compute.devices, or --devices)."
        )


def take_rows(table: Array, rows: Array, dim: int) -> Array:
    """Gather rows int32 [...] of a packed table: [..., dim], zeros where a number is out of range."""
    pack = table.shape[1] // dim
    wide = table.at[rows // pack].get(mode="fill", fill_value=0)
    place = (rows % pack)[..., None]
    parts = (wide[..., i * dim : (i + 1) * dim] for i in range(pack))
    own = (jnp.where(place == i, part, 0) for i, part in enumerate(parts))
    return sum(own, start=jnp.zeros((), table.dtype))


def add_to_rows(table: Array, rows: Array, values: Array) -> Array:
    """Add values [n, dim] to ascending rows int32 [n]; numbers out of range are skipped."""
    pack = table.shape[1] // values.shape[1]
    place = (rows % pack)[:, None]
    wide = [jnp.where(place == i, values, 0) for i in range(pack)]
    return table.at[rows // pack].add(
        jnp.concatenate(wide, axis=1), mode="drop", indices_are_sorted=True
    )


def initial_rows(rng: PRNGKey, ids: Array, dim: int) -> Array:
    """Draw rows of a new table, float32 [n, dim], for ids int32 [n]; each depends on rng and id.

    They are drawn in blocks, as the steps from random bits to numbers take the room of several tables.
    """

    def draw(item: Array) -> Array:
        key = jax.random.fold_in(rng, item)
        return ITEM_SCALE * jax.random.truncated_normal(key, -2, 2, (dim,))

    return jax.lax.map(draw, ids, batch_size=_DRAWN)


def insert_new_rows(part: Array, rows: int, fresh: Array) -> Array:
    """Return a device's rows after the table has grown.

    A device holds whole slices. An id keeps its slice and its place there: new rows are inserted at the
    end of each slice, and no row moves to another device.

    Args:
      part: [count, ...], this device's rows.
      rows: rows of the whole table after growing.
      fresh: [slices of this device, new rows of each, ...].
    """
    slices, more = fresh.shape[:2]
    old = part.reshape(slices, rows // SLICES - more, *part.shape[1:])
    return jnp.concatenate([old, fresh], axis=1).reshape(-1, *part.shape[1:])
