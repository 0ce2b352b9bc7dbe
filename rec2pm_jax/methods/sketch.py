"""A sketch of what a user did: sums of item vectors that no layer has mixed.

With `method.sketch` = P an item's vector has P parts of D numbers. The backbone embeds and predicts
the first part only. Every part is also summed over a user's events, by segment, and kept by a memory
slot as a running mean (normalised again by each update, see `MemoryTokens.leave`), which scores the
same table.

A slot has D numbers and the embeddings of thousands of items as many, so C slots that are functions of
these hold D numbers about what was bought, not C * D: with a part of its own each slot says something
new. A departure from the paper; evidence in BUILD_NOTES.md, 11.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.typing import PADDING_ID, Array

RECALL_GAIN = 0.5  # of what is recalled, beside an output of the backbone, at the start


def item_parts(table: Array, ids: Array, parts: int) -> Array:
    """The parts of items' vectors at unit scale per element, zeros for padding: float32 [..., P, D].

    Args:
      table: [V, P * D]; ids: int32 [...].
    """
    rows = table[ids].astype(jnp.float32).reshape(*ids.shape, parts, -1)
    rows = rows * jax.lax.rsqrt(jnp.mean(jnp.square(rows), axis=-1, keepdims=True) + 1e-12)
    return jnp.where((ids != PADDING_ID)[..., None, None], rows, 0)


def up_to(ids: Array, lengths: Array) -> Array:
    """The first `lengths` [B] of ids [B, N], the rest padding."""
    return jnp.where(jnp.arange(ids.shape[1]) < lengths[:, None], ids, PADDING_ID)


def widen(vectors: Array, width: int) -> Array:
    """Outputs [..., D] as vectors [..., width] that say nothing about further parts of an item."""
    return jnp.pad(vectors, ((0, 0),) * (vectors.ndim - 1) + ((0, width - vectors.shape[-1]),))


class WindowSketch(nn.Module):
    """What methods without a memory make of a sketch of the events they read.

    It gives `full` the wider item vectors that a memory with a sketch has, for a fair comparison; a
    session sums its whole window again for every event.

    Attributes:
      parts: P.
      dim: D.
    """

    parts: int
    dim: int

    @nn.compact
    def __call__(self, vectors: Array, sums: Array) -> Array:
        """Outputs [..., D] and sums of item parts [..., P, D] -> [..., P * D]."""
        width = self.parts * self.dim
        kernel = self.param("recall", lambda key: jnp.eye(width))
        gain = self.param("recall_gain", nn.initializers.constant(RECALL_GAIN), ())
        norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=jnp.float32)
        recalled = gain * (norm(sums).reshape(*sums.shape[:-2], width) @ kernel)
        return widen(vectors, width) + recalled.astype(vectors.dtype)
