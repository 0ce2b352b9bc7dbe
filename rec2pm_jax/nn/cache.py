"""Keys and values kept between passes, and passes over some rows on top of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.attention import Block, KeyValues, Layout, VisibleRange
from rec2pm_jax.typing import Array


class InPlaceCache(NamedTuple):
    """Cached tokens that the rows of a pass are written into before any row sees them.

    Attributes:
      kept: keys and values [B, tokens, H, d] of one layer, or [layers, B, tokens, H, d] of all. The
        places of the rows are free, or hold older versions of them.
      first: int32 [B], the first row's place among these tokens.
    """

    kept: KeyValues
    first: Array

    def before(self, own: KeyValues) -> KeyValues:
        """Return the cached tokens with `own` in place, then `own` again, which no row sees.

        It has the form of `KeyValues.before`; `rows_of` hides the second copy.
        """
        return write(self.kept, own, self.first, axis=1).before(own)


def write(kept: KeyValues, own: KeyValues, first: Array, axis: int) -> KeyValues:
    """Return `kept` with `own` in the places from first[b] on, along `axis`.

    The batch is the axis before `axis`. Places are clamped into the cached tokens, so the caller makes
    sure that there is room.
    """

    def one(kept: Array, own: Array, first: Array) -> Array:  # without the batch axis
        return jax.lax.dynamic_update_slice_in_dim(kept, own, first, axis - 1)

    over_batch = jax.vmap(one, in_axes=(axis - 1, axis - 1, 0), out_axes=axis - 1)
    return KeyValues(*(over_batch(*pair, first) for pair in zip(kept, own, strict=True)))


@dataclasses.dataclass(frozen=True)
class Rows:
    """Consecutive tokens of a pass.

    Attributes:
      first: the first of them: one number for all users, or int32 [B].
      count: how many there are.
    """

    first: int | Array
    count: int

    def after(self, start: int) -> Rows:
        """Return the same tokens as numbered from token `start` on."""
        return dataclasses.replace(self, first=self.first - start)

    def of(self, x: Array) -> Array:
        """Take the tokens out of x: [B, tokens, ...] -> [B, count, ...].

        If each user has different tokens, x may be [1, ...].
        """
        if isinstance(self.first, int):
            return x[:, self.first : self.first + self.count]
        index = self.first[:, None] + jnp.arange(self.count, dtype=jnp.int32)
        x = jnp.broadcast_to(x, (self.first.shape[0], *x.shape[1:]))
        return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def rows_of(layout: Layout, rows: Rows) -> Layout:
    """Return the layout of a pass over some rows, with the keys of the whole pass.

    The rows see what they see in the whole pass. If each user has different rows, they come after all
    tokens of the pass, where no row sees them; only their places count.

    Args:
      layout: of the whole pass.
      rows: tokens of that pass.
    """
    tokens = layout.place.shape[1]

    def joined(parts: Sequence[Array]) -> Array:  # [1 or B, rows of a block] each
        # Not the maximum: the batch of an exported program is a symbol.
        batch = next((part.shape[0] for part in parts if part.shape[0] != 1), 1)
        return jnp.concatenate([jnp.broadcast_to(p, (batch, p.shape[1])) for p in parts], axis=1)

    def with_rows(x: Array | None) -> Array | None:
        return None if x is None else joined([x, rows.of(x)])

    each_bound = zip(*(block.visible for block in layout.blocks), strict=True)
    own = rows.after(layout.first_row)
    visible = VisibleRange(*(own.of(joined(parts)) for parts in each_bound))
    first = rows.first if isinstance(rows.first, int) else tokens
    layout = layout.replace(blocks=(Block(visible, first, first + rows.count, 0, tokens),))
    if first < tokens:
        return layout
    return layout.replace(
        place=with_rows(layout.place),
        row_times=with_rows(layout.row_times),
        key_times=with_rows(layout.key_times),
    )
