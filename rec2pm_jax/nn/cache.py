"""Keys and values kept between passes, and rows of a pass that run alone on top of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.attention import Block, KeyValues, Layout, Spans
from rec2pm_jax.typing import Array


class Placed(NamedTuple):
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


def rows_of(layout: Layout, first: Array, count: int) -> Layout:
    """Rows [first, first + count) of a pass by themselves, on top of the kept tokens of all of it.

    They see what they see in the whole pass: its tokens stand first, as kept ones, and the rows stand
    after them, where only the rows' places in the pass count and nobody sees them.

    Args:
      layout: of the whole pass.
      first: int32 [B], token of each user's first row.
    """
    batch, tokens = first.shape[0], layout.place.shape[1]
    index = first[:, None] + jnp.arange(count, dtype=jnp.int32)

    def spread(x):
        return jnp.broadcast_to(x, (batch, x.shape[1]))

    def pick(x, begin=0):  # [1 or B, tokens - begin] -> [B, count]
        return jnp.take_along_axis(spread(x), index - begin, axis=1)

    def also(x):
        return jnp.concatenate([spread(x), pick(x)], axis=1)

    spans = (
        pick(jnp.concatenate([spread(x) for x in each], axis=1), layout.blocks[0].row_start)
        for each in zip(*(block.spans for block in layout.blocks), strict=True)
    )
    block = Block(Spans(*spans), tokens, tokens + count, 0, tokens)
    return layout.replace(
        blocks=(block,),
        place=also(layout.place),
        row_times=None if layout.row_times is None else also(layout.row_times),
        key_times=None if layout.key_times is None else also(layout.key_times),
    )
