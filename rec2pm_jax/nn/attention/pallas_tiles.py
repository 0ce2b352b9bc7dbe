"""Tiles, heads and masks of the attention kernels (`pallas_kernels.py`).

Arrays have features first, [H * d, tokens]. XLA chooses this layout for [B, tokens, D] with D = 64 too:
tokens fill the 128 lanes of a register, and 64 features would not. Scores are [keys, rows], so numbers
that belong to a row are a vector of lanes.

A head's features are rows of sublanes. Heads narrower than a register's sublanes share a slab. For each
of them the features of the others are set to zero, which does not slow the matrix unit down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from rec2pm_jax.typing import Array

Ref = Any  # a Pallas reference to an array in vector memory, or None for an array that is absent


class Sizes(NamedTuple):
    """The static part of a call.

    Attributes:
      norm: N of pointwise SiLU, 0 for softmax.
      heads: H.
      features: H * dqk.
      value_features: H * dv.
      rows, keys: tokens that attend, and tokens that are keys.
      row_tile, key_tile: rows and keys of a tile.
      shared: whether one user's intervals serve all users.
      exact: whether float32 products are not rounded to bfloat16.
      pairs: (row, key) pairs that the layout's blocks reach, per user.
      tiles: tiles that the layout's blocks reach, per user.
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
        """Tiles that cover the rows."""
        return -(-self.rows // self.row_tile)

    @property
    def padded_keys(self) -> int:
        """Keys of whole tiles."""
        return -(-self.keys // self.key_tile) * self.key_tile


class Head(NamedTuple):
    """Where a head's features are.

    Attributes:
      number: of the head.
      begin, stop: the slab, which other heads may share.
      own_begin, own_stop: the head's part, counted from `begin`.
    """

    number: int
    begin: int
    stop: int
    own_begin: int
    own_stop: int

    @property
    def slab(self) -> slice:
        """The features [begin, stop)."""
        return slice(self.begin, self.stop)

    def select(self, x: Array) -> Array:
        """Take the slab out of [features, n], with the other heads' features set to zero."""
        x = x[self.slab]
        return x if self._alone else jnp.where(self._mask(x.shape), x, jnp.zeros_like(x))

    def spread(self, x: Array) -> Array:
        """Repeat x over the head's features, with 1 at the other heads': [1, n] -> [slab, n]."""
        x = jnp.broadcast_to(x, (self.stop - self.begin, x.shape[1]))
        return x if self._alone else jnp.where(self._mask(x.shape), x, 1.0)

    @property
    def row(self) -> slice:
        """The head's row of an array [H, n]."""
        return slice(self.number, self.number + 1)

    @property
    def _alone(self) -> bool:
        return self.own_stop - self.own_begin == self.stop - self.begin

    def _mask(self, shape: tuple[int, ...]) -> Array:
        feature = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        return (feature >= self.own_begin) & (feature < self.own_stop)


def place_heads(features: int, heads: int, sublanes: int) -> list[Head]:
    """Place the heads of [features, n] in slabs that begin at multiples of `sublanes`."""
    width = features // heads
    fits = (n for n in range(1, heads) if heads % n == 0 and n * width % sublanes == 0)
    slab = next(fits, heads) * width
    placed = []
    for number in range(heads):
        begin = number * width // slab * slab
        own = number * width - begin
        placed.append(Head(number, begin, begin + slab, own, own + width))
    return placed


def dot(a: Array, b: Array, contract: tuple[int, int], exact: bool) -> Array:
    """Multiply matrices over a's axis contract[0] and b's axis contract[1]; the result is float32."""
    return jax.lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


class Tile(NamedTuple):
    """A tile of keys, for a tile of rows. Columns beyond the last key are zero."""

    start: Array  # first key
    k: Array  # features keys
    v: Array  # value_features keys
    mask: Array  # keys rows, bool
    bias: Array | None  # keys rows, float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyRefs:
    """References from which tiles of keys are read. The first axis is one user."""

    k: Ref  # 1 features keys
    v: Ref  # 1 value_features keys
    intervals: Ref  # 1 4 rows, int32
    bias: Ref = None  # 1 keys rows, float32; None without a bias


def for_each_tile(sizes: Sizes, tiles: Ref, refs: KeyRefs, visit: Callable[[Tile], None]) -> None:
    """Call `visit` for each tile of keys that the grid's current tile of rows reads.

    Args:
      sizes: of the call.
      tiles: int32, what `pallas_intervals.visible_tiles` returned, flattened.
      refs: of the current user.
      visit: called inside a loop.
    """
    user, number = pl.program_id(0), pl.program_id(1)
    first = (jnp.where(sizes.shared, 0, user) * sizes.row_tiles + number) * 4
    row = number * sizes.row_tile + jax.lax.broadcasted_iota(jnp.int32, (1, sizes.row_tile), 1)
    intervals = refs.intervals[0]
    lo, item_lo = intervals[0:1], intervals[2:3]
    # Rows beyond the last one see nothing, whatever their intervals contain.
    hi, item_hi = (jnp.where(row < sizes.rows, intervals[n : n + 1], 0) for n in (1, 3))

    def step(j: Array, _: int) -> int:
        start = pl.multiple_of(j * sizes.key_tile, sizes.key_tile)
        at = pl.ds(start, sizes.key_tile)
        key = start + jax.lax.broadcasted_iota(jnp.int32, (sizes.key_tile, sizes.row_tile), 0)
        mask = ((key >= lo) & (key < hi)) | ((key >= item_lo) & (key < item_hi))
        k, v = refs.k[0, :, at], refs.v[0, :, at]
        if sizes.padded_keys > sizes.keys:
            k, v = (_zero_from(x, sizes.keys - start) for x in (k, v))
        visit(Tile(start, k, v, mask, None if refs.bias is None else refs.bias[0, at, :]))
        return 0

    jax.lax.fori_loop(tiles[first], tiles[first + 1], step, 0)
    jax.lax.fori_loop(tiles[first + 2], tiles[first + 3], step, 0)


def _zero_from(x: Array, count: Array | int) -> Array:
    """Return x [features, n] with zeros from column `count` on."""
    column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where(column < count, x, jnp.zeros_like(x))


def read_rows(sizes: Sizes, ref: Ref) -> Array:
    """Read the current tile of rows [features, rows] of a reference, zero beyond the last row."""
    x = ref[0]
    if sizes.rows % sizes.row_tile == 0:
        return x
    return _zero_from(x, sizes.rows - pl.program_id(1) * sizes.row_tile)
