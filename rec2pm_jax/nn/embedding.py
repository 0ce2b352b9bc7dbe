"""Events to token vectors."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from rec2pm_jax.config import ModelConfig
from rec2pm_jax.nn.gaps import GAPS
from rec2pm_jax.nn.registry import uses_identity_init
from rec2pm_jax.typing import Array

ITEM_SCALE = 0.02
TABLE = "item_embedding"  # the parameter that holds the item table


class EventEmbedding(nn.Module):
    """E[id] * sqrt(D) + position[i] (+ gap + type), as generative-recommenders embeds events.

    Attributes:
      num_items: real items; the table has one more row for padding (row 0).
      max_positions: rows of the learned absolute positions.
    """

    config: ModelConfig
    num_items: int
    max_positions: int

    @nn.compact
    def __call__(
        self,
        ids: Array,
        positions: Array,
        types: Array | None = None,
        gaps: Array | None = None,
    ) -> Array:
        """Embed events.

        Args:
          ids: int32 [B, N].
          positions: int32 [1 or B, N], below `max_positions`.
          types: int32 [B, N], needed with `config.event_types`.
          gaps: int32 [B, N], buckets of the time to the query, GAPS where that is not known; needed
            with `config.use_times`.

        Returns:
          [B, N, D] in the compute dtype.
        """
        config = self.config
        dim = config.dim
        table = self.param(
            TABLE,
            nn.initializers.truncated_normal(ITEM_SCALE),
            (self.num_items + 1, dim),
        )
        x = table[ids] * dim**0.5
        # Attention that starts as a sum of what it sees needs positions smaller than items.
        scale = 0.02 if uses_identity_init(config) else dim**-0.5
        places = self.param(
            "position_embedding",
            nn.initializers.truncated_normal(scale),
            (self.max_positions, dim),
        )
        x = x + places[positions]
        if config.event_types:
            kinds = self.param(
                "type_embedding",
                nn.initializers.truncated_normal(0.02),
                (config.event_types + 1, dim),
            )
            x = x + kinds[types] * dim**0.5
        if config.use_times:
            zeros = nn.initializers.zeros_init()
            x = x + self.param("gap_embedding", zeros, (GAPS + 1, dim))[gaps]
        return x.astype(jnp.dtype(config.dtype))
