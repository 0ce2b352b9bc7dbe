"""Tiles, heads and masks of the attention kernels (`pallas_kernels.py`).

Arrays stand features first, [H * d, tokens]: that is how XLA lays out [B, tokens, D] with D = 64 by
itself, as tokens fill the 128 lanes and 64 features would not. Scores are [keys, rows], so that what
belongs to a row is a vector of lanes. Heads are rows of the sublanes; of heads narrower than a
register's sublanes some share a slab, in which the others' features are set to zero: the matrix
unit is no slower for that.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from rec2pm_jax.typing import Array


class Sizes(NamedTuple):
    """What is static about a call.

    Attributes:
      norm: N of pointwise SiLU, 0 for softmax.
      heads: H. features: H * d of q and k. value_features: H * dv.
      rows, keys: tokens. row_tile, key_tile: of them per tile.
      shared: True where one user's intervals serve all.
      exact: float32 products without rounding to bfloat16.
      pairs: of a row and a key that the layout's blocks reach, per user; tiles: likewise.
      vmem: bytes of vector memory.
    """

    norm: float
    heads: int
    features: int
    value_features: int
    rows: int
    keys: int
    row_tile: int
    key_tile: int
    shared: bool
    exact: bool
    pairs: int
    tiles: int
    vmem: int

    @property
    def row_tiles(self) -> int:
        return -(-self.rows // self.row_tile)

    @property
    def padded_keys(self) -> int:
        return -(-self.keys // self.key_tile) * self.key_tile


class Head(NamedTuple):
    """Where a head's features are: the slab [begin, stop), and its own part of the slab."""

    number: int
    begin: int
    stop: int
    own_begin: int
    own_stop: int

    def of(self, x: Array) -> Array:
        """The slab out of [features, n], the other heads' features zero."""
        x = x[self.begin : self.stop]
        return x if self._alone else jnp.where(self._mask(x.shape), x, jnp.zeros_like(x))

    def spread(self, x: Array) -> Array:
        """[1, n] -> [slab, n]: x in the head's own features, 1 in the rest."""
        x = jnp.broadcast_to(x, (self.stop - self.begin, x.shape[1]))
        return x if self._alone else jnp.where(self._mask(x.shape), x, 1.0)

    @property
    def row(self) -> slice:
        """The head's row of [H, n]."""
        return slice(self.number, self.number + 1)

    @property
    def _alone(self) -> bool:
        return self.own_stop - self.own_begin == self.stop - self.begin

    def _mask(self, shape) -> Array:
        feature = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        return (feature >= self.own_begin) & (feature < self.own_stop)


def heads_of(features: int, heads: int, sublanes: int) -> list[Head]:
    """The heads of [features, n], with slabs that begin at multiples of `sublanes`."""
    width = features // heads
    fits = (n for n in range(1, heads) if heads % n == 0 and n * width % sublanes == 0)
    slab = next(fits, heads) * width
    each = []
    for number in range(heads):
        begin = number * width // slab * slab
        own = number * width - begin
        each.append(Head(number, begin, begin + slab, own, own + width))
    return each


def dot(a: Array, b: Array, contract: tuple[int, int], exact: bool) -> Array:
    """float32 product of matrices over a's axis contract[0] and b's contract[1]."""
    return jax.lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


class Tile(NamedTuple):
    """A tile of keys before a tile of rows. What lies beyond the last key is zero."""

    start: Array
    k: Array  # [features, keys]
    v: Array  # [value features, keys]
    mask: Array  # bool [keys, rows]
    bias: Array | None  # float32 [keys, rows]


def over_tiles(sizes: Sizes, seen, intervals, k_ref, v_ref, bias_ref, visit) -> None:
    """Calls `visit(tile)` for the tiles of keys that the grid's current tile of rows looks at.

    seen: int32 reference of `intervals.tiles_seen`, flat; intervals: int32 [4, rows].
    """
    user, number = pl.program_id(0), pl.program_id(1)
    first = (jnp.where(sizes.shared, 0, user) * sizes.row_tiles + number) * 4
    row = number * sizes.row_tile + jax.lax.broadcasted_iota(jnp.int32, (1, sizes.row_tile), 1)
    lo, item_lo = intervals[0:1], intervals[2:3]
    # Rows beyond the last see nothing, whatever stands there.
    hi, item_hi = (jnp.where(row < sizes.rows, intervals[n : n + 1], 0) for n in (1, 3))

    def step(j, _):
        start = pl.multiple_of(j * sizes.key_tile, sizes.key_tile)
        at = pl.ds(start, sizes.key_tile)
        key = start + jax.lax.broadcasted_iota(jnp.int32, (sizes.key_tile, sizes.row_tile), 0)
        mask = ((key >= lo) & (key < hi)) | ((key >= item_lo) & (key < item_hi))
        k, v = k_ref[0, :, at], v_ref[0, :, at]
        if sizes.padded_keys > sizes.keys:
            k, v = (_until(x, sizes.keys - start) for x in (k, v))
        visit(Tile(start, k, v, mask, None if bias_ref is None else bias_ref[0, at, :]))
        return 0

    jax.lax.fori_loop(seen[first], seen[first + 1], step, 0)
    jax.lax.fori_loop(seen[first + 2], seen[first + 3], step, 0)


def _until(x: Array, count) -> Array:
    """x [features, n] with zeros from column `count` on."""
    column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where(column < count, x, jnp.zeros_like(x))


def rows_read(sizes: Sizes, ref) -> Array:
    """The current tile of rows [features, rows] of a reference, zero beyond the last row."""
    x = ref[0]
    if sizes.rows % sizes.row_tile == 0:
        return x
    return _until(x, sizes.rows - pl.program_id(1) * sizes.row_tile)
