"""The HSTU layer (Zhai et al. 2024): pointwise SiLU attention with a relative bias."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.attention import (
    AttentionSpec,
    Block,
    KeyValues,
    Layout,
    ScoreNormalizer,
    attend,
    weight_recorder,
)
from rec2pm_jax.nn.cache import InPlaceCache, Rows
from rec2pm_jax.nn.dropout import Dropout
from rec2pm_jax.nn.registry import LayerSpec, register_backbone
from rec2pm_jax.typing import Array

TIME_BUCKETS = 129
EPSILON = 1e-6  # of both layer norms


def time_bucket(seconds: Array) -> Array:
    """Return the logarithmic bucket of each time difference.

    floor(ln(max(|seconds|, 1)) / 0.301), clipped to [0, 128], as in generative-recommenders.

    Args:
      seconds: integer array of any shape.

    Returns:
      int32 array of the same shape.
    """
    gap = jnp.maximum(jnp.abs(seconds), 1).astype(jnp.float32)
    return jnp.clip((jnp.log(gap) / 0.301).astype(jnp.int32), 0, TIME_BUCKETS - 1)


@register_backbone("hstu", reads=("relative_bias", "score_norm"))
class HSTULayer(nn.Module):
    """y = x + W_o Drop(u * LN(A v)) + b_o with A = SiLU(q k^T + bias) / N.

    u, v, q, k = split(SiLU(LN(x) W)). LN has no affine part, and scores are not divided by sqrt(d).
    N (`spec.score_norm`) is one constant per model and the same in every pass: dividing by the number
    of keys would make cached inference differ from training. The bias between a row and an item key is
    position_bias[place_row - place_key] + time_bias[bucket(row_time - key_time)]. A slot has no place
    in time; it gets one learned bias per slot id.
    """

    spec: LayerSpec

    @nn.compact
    def __call__(
        self,
        x: Array,  # B tokens D
        layout: Layout,
        rows: Array | None,  # B
        cache: KeyValues | InPlaceCache | None = None,
        wanted: Rows | None = None,
    ) -> tuple[Array, KeyValues]:
        """Apply the layer; arguments and results are those of `SASRecLayer`."""
        config = self.spec.config
        dtype = jnp.dtype(config.dtype)
        layer_norm = partial(
            nn.LayerNorm, epsilon=EPSILON, use_bias=False, use_scale=False, dtype=dtype
        )
        uvqk = nn.DenseGeneral(
            (4, config.heads, config.key_dim),
            use_bias=False,
            kernel_init=nn.initializers.normal(0.02),
            dtype=dtype,
            name="uvqk",
        )(layer_norm(name="input_norm")(x))
        v, k = jax.nn.silu(uvqk[:, :, 1]), jax.nn.silu(uvqk[:, :, 3])
        if wanted is not None:
            x, uvqk = wanted.of(x), wanted.of(uvqk)
        u, q = jax.nn.silu(uvqk[:, :, 0]), jax.nn.silu(uvqk[:, :, 2])
        own = KeyValues(k, v)
        k, v = own if cache is None else cache.before(own)

        spec = AttentionSpec(ScoreNormalizer(self.spec.score_norm), self._biases(layout))
        a = attend(q, k, v, layout, spec, self.spec.compute, record=weight_recorder(self))
        a = a.reshape(*a.shape[:2], -1)
        gated = u.reshape(a.shape) * layer_norm(name="output_norm")(a)
        gated = Dropout(config.dropout)(gated, rows)
        out = nn.Dense(
            config.dim, kernel_init=nn.initializers.xavier_uniform(), dtype=dtype, name="out"
        )
        return x + out(gated), own

    def _biases(self, layout: Layout) -> tuple[Array, ...] | None:
        """Return a bias [1 or B, rows, keys] for each block, or None without a relative bias."""
        kind = self.spec.config.relative_bias
        if kind == "none":
            return None
        small = nn.initializers.normal(0.02)
        by_distance = self.param("position_bias", small, (self.spec.max_distance + 1,))
        by_slot = self.param("slot_bias", small, (self.spec.num_slot_ids,))
        by_time = self.param("time_bias", small, (TIME_BUCKETS,)) if kind != "position" else None
        slots = layout.num_slots
        row_times: Any = layout.row_times
        key_times: Any = layout.key_times
        if by_time is not None and (row_times is None or key_times is None):
            raise UserError(
                "config.model.relative_bias=position_time needs events with times; use position for "
                "a dataset without them."
            )

        def bias(block: Block) -> Array:
            rows = slice(block.row_start, block.row_stop)
            keys = slice(slots + block.item_start, block.key_stop)
            distance = layout.place[:, rows, None] - layout.place[:, None, keys]
            items = by_distance[jnp.clip(distance, 0, self.spec.max_distance)]
            if by_time is not None:
                gap = row_times[:, rows, None] - key_times[:, None, keys]
                items = items + by_time[time_bucket(gap)]
            if block.key_start:
                return items
            memory = jnp.broadcast_to(by_slot[layout.slot_ids], (*items.shape[:2], slots))
            return jnp.concatenate([memory, items], axis=-1)

        return tuple(bias(block) for block in layout.blocks)
