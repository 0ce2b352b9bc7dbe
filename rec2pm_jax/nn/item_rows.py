"""Where an item's embedding lies in a table whose rows are spread over devices.

Ids count items by popularity, so neighbours must not share a device. The table is cut into `SLICES`
slices of equally many rows, device d of n holds slices [d, d + 1) * SLICES / n, and neighbouring ids
are dealt to slices a golden section apart, which spreads every run of ids evenly for any n. The place
depends on the id and the size of the catalogue only, so a table written by 4 devices can be read by 2.

Rows narrower than the 128 lanes of a TPU register would be padded, or stored across and turned around
in every step. So n = 128 // W neighbouring rows lie side by side: the table is [R / n, n * W].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.embedding import ITEM_SCALE
from rec2pm_jax.typing import Array, PRNGKey

SLICES = 4096  # the number of devices must divide it
_STRIDE = 2531  # odd, so prime to SLICES; SLICES / golden ratio
_INVERSE = pow(_STRIDE, -1, SLICES)
_LANES = 128


def table_rows(num_items: int) -> int:
    """Rows R of the table: `num_items` and padding, filled up to whole slices."""
    return -(-(num_items + 1) // SLICES) * SLICES


def rows_of(ids: Array, rows: int) -> Array:
    """Rows of ids in a table of `rows` rows: int32, same shape. Id 0 (padding) has row 0."""
    return (ids % SLICES) * _STRIDE % SLICES * (rows // SLICES) + ids // SLICES


def ids_at(index: Array, rows: int) -> Array:
    """The inverse of `rows_of`; unused rows get ids above the catalogue."""
    depth = rows // SLICES
    return index % depth * SLICES + index // depth * _INVERSE % SLICES


def packing(dim: int) -> int:
    """Rows of width `dim` that lie side by side; a power of two."""
    return 1 << max(0, (_LANES // dim).bit_length() - 1)


def packed_shape(rows: int, dim: int) -> tuple[int, int]:
    """Shape of a table of `rows` rows of width `dim`."""
    return rows // packing(dim), packing(dim) * dim


def check_shards(shards: int, dim: int) -> None:
    """Raises: UserError unless `shards` devices can share a table."""
    most = SLICES // packing(dim)
    if most % shards:
        raise UserError(
            f"config.model.table=sharded over {shards} devices: their number must divide {most} where "
            f"an item has {dim} numbers; set config.compute.devices to a power of two."
        )


def take_rows(table: Array, rows: Array, dim: int) -> Array:
    """Rows int32 [...] of a packed table: [..., dim], zeros where a number is out of range."""
    pack = table.shape[1] // dim
    wide = table.at[rows // pack].get(mode="fill", fill_value=0)
    place = (rows % pack)[..., None]
    parts = (wide[..., i * dim : (i + 1) * dim] for i in range(pack))
    return sum(jnp.where(place == i, part, 0) for i, part in enumerate(parts))


def add_to_rows(table: Array, rows: Array, values: Array) -> Array:
    """Adds values [n, dim] to rows int32 [n], ascending; numbers out of range are skipped."""
    pack = table.shape[1] // values.shape[1]
    place = (rows % pack)[:, None]
    wide = [jnp.where(place == i, values, 0) for i in range(pack)]
    return table.at[rows // pack].add(
        jnp.concatenate(wide, axis=1), mode="drop", indices_are_sorted=True
    )


def initial_rows(rng: PRNGKey, ids: Array, dim: int) -> Array:
    """Rows of a fresh table, float32 [n, dim], for ids int32 [n]; each depends on (rng, id) alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, ids)
    draw = jax.vmap(lambda key: jax.random.truncated_normal(key, -2, 2, (dim,)))
    return ITEM_SCALE * draw(keys)


def deepened(part: Array, rows: int, fresh: Array) -> Array:
    """A device's rows [count, ...] after the table has grown to `rows` rows.

    A device holds whole slices, and an id keeps its slice and its place there: slices get deeper at
    their end, and no row leaves its device. fresh: [slices of the device, more rows of each, ...].
    """
    slices, more = fresh.shape[:2]
    old = part.reshape(slices, rows // SLICES - more, *part.shape[1:])
    return jnp.concatenate([old, fresh], axis=1).reshape(-1, *part.shape[1:])
