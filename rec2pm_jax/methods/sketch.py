"""A sketch of a user's history: sums of item vectors that no layer has mixed.

With `method.sketch` = P an item's vector has P parts of D numbers. The backbone embeds and predicts
the first part only. Every part is also summed over a user's events, by segment, and a memory slot
keeps the running mean of the sums (`MemoryTokens.add_sketch`). Recall then scores the same table.

A slot has D numbers, and so have the embeddings of thousands of items. C slots that are functions of
these embeddings hold D numbers about a user's items, not C * D. With a separate part for each slot,
each slot holds something new. The paper has no sketch; docs/methods.md has the evidence.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.typing import PADDING_ID, Array

RECALL_GAIN = 0.5  # initial weight of what is recalled, beside an output of the backbone


def item_parts(table: Array, ids: Array, parts: int) -> Array:
    """Return the parts of items' vectors at unit scale per element; zeros for padding.

    Args:
      table: [V, P * D].
      ids: int32 [...].
      parts: P.

    Returns:
      float32 [..., P, D].
    """
    rows = table[ids].astype(jnp.float32).reshape(*ids.shape, parts, -1)
    rows = rows * jax.lax.rsqrt(jnp.mean(jnp.square(rows), axis=-1, keepdims=True) + 1e-12)
    return jnp.where((ids != PADDING_ID)[..., None, None], rows, 0)


def up_to(ids: Array, lengths: Array) -> Array:
    """Keep the first `lengths` [B] of ids [B, N], and replace the rest by padding."""
    return jnp.where(jnp.arange(ids.shape[1]) < lengths[:, None], ids, PADDING_ID)


def widen(vectors: Array, width: int) -> Array:
    """Pad outputs [..., D] with zeros to [..., width]: they leave further item parts out."""
    return jnp.pad(vectors, ((0, 0),) * (vectors.ndim - 1) + ((0, width - vectors.shape[-1]),))


class WindowSketch(nn.Module):
    """The sketch of methods without a memory, over the events that they read.

    It gives `full` the wider item vectors that a memory with a sketch has, for a fair comparison. A
    session sums its whole window for every event.

    Attributes:
      parts: P.
      dim: D.
    """

    parts: int
    dim: int

    @nn.compact
    def __call__(self, vectors: Array, sums: Array) -> Array:
        """Add the sketch to outputs.

        Args:
          vectors: [..., D].
          sums: [..., P, D], of item parts.

        Returns:
          [..., P * D].
        """
        width = self.parts * self.dim
        kernel = self.param("recall", lambda key: jnp.eye(width))
        gain = self.param("recall_gain", nn.initializers.constant(RECALL_GAIN), ())
        norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=jnp.float32)
        recalled = gain * (norm(sums).reshape(*sums.shape[:-2], width) @ kernel)
        return widen(vectors, width) + recalled.astype(vectors.dtype)
