"""How the scores of a pass become weights, and the keys and values that a pass returns."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rec2pm_jax.nn.dropout import per_row, random_bytes
from rec2pm_jax.typing import Array, PRNGKey


class KeyValues(NamedTuple):
    """Keys and values of some tokens in one layer, or of all layers on a leading axis."""

    k: Array  # B tokens H dqk
    v: Array  # B tokens H dv

    def before(self, own: KeyValues) -> KeyValues:
        """Return these tokens (cached by an earlier pass), followed by those of the pass itself."""
        return KeyValues(*(jnp.concatenate(pair, axis=1) for pair in zip(self, own, strict=True)))


@dataclasses.dataclass(frozen=True)
class ScoreNormalizer:
    """Turns scores into weights.

    Attributes:
      norm: 0 for softmax over the visible keys; otherwise N of HSTU's pointwise SiLU(score) / N.

    >>> scores = jnp.zeros((1, 1, 1, 3))
    >>> ScoreNormalizer()(scores, jnp.array([True, True, False])).ravel().tolist()
    [0.5, 0.5, 0.0]
    """

    norm: float = 0.0

    def __call__(self, scores: Array, mask: Array) -> Array:
        """Return the weights before dropout; rows that see nothing get zeros.

        Args:
          scores: float32 [B, H, rows, keys].
          mask: bool, broadcastable to the scores.
        """
        if self.norm:
            return jnp.where(mask, jax.nn.silu(scores) / self.norm, 0.0)
        scores = jnp.where(mask, scores, -jnp.inf)
        top = jnp.max(scores, axis=-1, keepdims=True, initial=-1e30)
        weights = jnp.exp(scores - jax.lax.stop_gradient(top))
        return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)


class AttentionDropout(struct.PyTreeNode):
    """Dropout of attention weights.

    Attributes:
      key: random key of the layer.
      rows: int32 [B], row numbers, see `per_row`.
      dropped: how many of 256 weights are set to zero, on average.
    """

    key: PRNGKey
    rows: Array  # B
    dropped: int = struct.field(pytree_node=False)

    def factors(self, block: int | Array, shape: tuple[int, ...]) -> Array:
        """Return what the weights of a block are multiplied by: 0 or 1 / (1 - rate).

        Args:
          block: number of the block in its layout.
          shape: of one user's weights.

        Returns:
          float32 [B, *shape].
        """
        key = jax.random.fold_in(self.key, block)
        bits = per_row(lambda k: random_bytes(k, shape), key, self.rows)
        scale = jnp.float32(256 / (256 - self.dropped))
        return jnp.where(bits >= self.dropped, scale, 0)


class AttentionSpec(struct.PyTreeNode):
    """How the scores of a pass become weights.

    Attributes:
      normalizer: softmax or pointwise SiLU.
      biases: one array [1 or B, rows, keys] per block, added to the scores of every head, or None.
      dropout: None switches dropout off.
    """

    normalizer: ScoreNormalizer = struct.field(pytree_node=False, default=ScoreNormalizer())
    biases: tuple[Array, ...] | None = None
    dropout: AttentionDropout | None = None
