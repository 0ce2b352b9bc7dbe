"""Keys and values kept between passes, and rows of a pass that run alone on top of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.attention import Block, KeyValues, Layout, VisibleRange
from rec2pm_jax.typing import Array


class InPlaceCache(NamedTuple):
    """Kept tokens of one layer that the rows of a pass are written into before they are seen.

    Attributes:
      kept: [B, tokens, H, d] each; there is room at the rows' places, or an older version of them.
      first: int32 [B], the first row's place among these tokens.
    """

    kept: KeyValues
    first: Array

    def before(self, own: KeyValues) -> KeyValues:
        """As `KeyValues.before`; `rows_of` lets nobody see the second copy at the end."""
        return write(self.kept, own, self.first, axis=1).before(own)


def write(kept: KeyValues, own: KeyValues, first: Array, axis: int) -> KeyValues:
    """`kept` with `own` in the places from first[b] on, along `axis`; the batch is the axis before.

    A user's rows are clamped into the kept tokens: the caller sees to it that there is room.
    """

    def one(kept, own, first):  # without the batch axis
        return jax.lax.dynamic_update_slice_in_dim(kept, own, first, axis - 1)

    over_batch = jax.vmap(one, in_axes=(axis - 1, axis - 1, 0), out_axes=axis - 1)
    return KeyValues(*(over_batch(*pair, first) for pair in zip(kept, own, strict=True)))


class Rows(NamedTuple):
    """Consecutive tokens of a pass whose outputs are wanted, and no others.

    Attributes:
      first: the first of them: one number for all users, or int32 [B].
      count: how many.
    """

    first: int | Array
    count: int

    @property
    def shared(self) -> bool:
        return isinstance(self.first, int)

    def after(self, start: int) -> Rows:
        """The same tokens as numbered from token `start` on."""
        return self._replace(first=self.first - start)

    def of(self, x: Array) -> Array:
        """[B, tokens, ...] -> [B, count, ...]; where each user has its own rows, x may be [1, ...]."""
        if self.shared:
            return x[:, self.first : self.first + self.count]
        index = self.first[:, None] + jnp.arange(self.count, dtype=jnp.int32)
        x = jnp.broadcast_to(x, (self.first.shape[0], *x.shape[1:]))
        return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def rows_of(layout: Layout, rows: Rows) -> Layout:
    """Some rows of a pass by themselves, with the keys of all of it.

    They see what they see in the whole pass. Where each user has its own, they stand after all of its
    tokens, where only the rows' places count and nobody sees them.

    layout: of the whole pass.
    """
    tokens = layout.place.shape[1]

    def joined(parts):  # [1 or B, rows of a block] each
        # Not the maximum: the batch of an exported program is a symbol.
        batch = next((part.shape[0] for part in parts if part.shape[0] != 1), 1)
        return jnp.concatenate([jnp.broadcast_to(p, (batch, p.shape[1])) for p in parts], axis=1)

    def also(x):
        return None if x is None else joined([x, rows.of(x)])

    each_span = zip(*(block.visible for block in layout.blocks), strict=True)
    own = rows.after(layout.first_row)
    visible = VisibleRange(*(own.of(joined(parts)) for parts in each_span))
    first = rows.first if rows.shared else tokens
    layout = layout.replace(blocks=(Block(visible, first, first + rows.count, 0, tokens),))
    if rows.shared:
        return layout
    return layout.replace(
        place=also(layout.place),
        row_times=also(layout.row_times),
        key_times=also(layout.key_times),
    )
