"""The HSTU layer (Zhai et al. 2024): pointwise SiLU attention with a relative bias."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.config import ComputeConfig, ModelConfig
from rec2pm_jax.nn.attention import (
    AttentionSpec,
    Block,
    KeyValues,
    Layout,
    ScoreNormalizer,
    attend,
    weight_recorder,
)
from rec2pm_jax.nn.cache import Rows
from rec2pm_jax.nn.dropout import Dropout
from rec2pm_jax.typing import Array

TIME_BUCKETS = 129  # bucket = floor(ln(max(|dt|, 1)) / 0.301), clipped to [0, 128]


def time_bucket(seconds: Array) -> Array:
    """Logarithmic bucket of a time difference in seconds; int32 in [0, 128]."""
    gap = jnp.maximum(jnp.abs(seconds), 1).astype(jnp.float32)
    return jnp.clip((jnp.log(gap) / 0.301).astype(jnp.int32), 0, TIME_BUCKETS - 1)


class HSTULayer(nn.Module):
    """y = x + W_o Drop(u * LN(A v)) + b_o with A = SiLU(q k^T + bias) / N. [B, tokens, D] -> same.

    u, v, q, k = split(SiLU(LN(x) W)); LN without affine, eps 1e-6; no 1/sqrt(d) on the scores. `norm`
    is N, one constant per model and the same in every pass: dividing by the number of keys instead
    makes cached inference differ from training. The bias between a row and an item key is
    pos_w[place_row - place_key] + ts_w[bucket(row_time - key_time)]; a slot has no place in time and
    gets one learned bias per slot id instead. Called as `SASRecLayer` is.

    Attributes:
      norm: N.
      max_distance: largest row-key distance with a bias of its own; longer ones share it.
      num_slot_ids: rows of the learned slot bias, see `Layout.slot_ids`.
      compute: how attention is computed, see `attend`.
    """

    config: ModelConfig
    norm: float
    max_distance: int
    num_slot_ids: int
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(
        self,
        x: Array,
        layout: Layout,
        rows: Array | None,
        kept: KeyValues | None = None,
        only: Rows | None = None,
    ) -> tuple[Array, KeyValues]:
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        layer_norm = partial(
            nn.LayerNorm, epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype
        )
        width = (cfg.heads, cfg.key_dim)

        uvqk = nn.DenseGeneral(
            (4, *width),
            use_bias=False,
            kernel_init=nn.initializers.normal(0.02),
            dtype=dtype,
            name="uvqk",
        )(layer_norm(name="input_norm")(x))
        v, k = jax.nn.silu(uvqk[:, :, 1]), jax.nn.silu(uvqk[:, :, 3])
        if only is not None:
            x, uvqk = only.of(x), only.of(uvqk)
        u, q = jax.nn.silu(uvqk[:, :, 0]), jax.nn.silu(uvqk[:, :, 2])
        own = KeyValues(k, v)
        k, v = own if kept is None else kept.before(own)

        spec = AttentionSpec(ScoreNormalizer(self.norm), self._biases(layout))
        a = attend(q, k, v, layout, spec, self.compute, record=weight_recorder(self))
        a = a.reshape(*a.shape[:2], -1)
        gated = u.reshape(a.shape) * layer_norm(name="output_norm")(a)
        gated = Dropout(cfg.dropout)(gated, rows)
        out = nn.Dense(
            cfg.dim, kernel_init=nn.initializers.xavier_uniform(), dtype=dtype, name="out"
        )
        return x + out(gated), own

    def _biases(self, layout: Layout) -> tuple[Array, ...] | None:
        """Return a bias [1 or B, rows, keys] for each block, or None without a relative bias."""
        if self.config.relative_bias == "none":
            return None
        small = nn.initializers.normal(0.02)
        by_distance = self.param("position_bias", small, (self.max_distance + 1,))
        by_slot = self.param("slot_bias", small, (self.num_slot_ids,))
        by_time = None
        if self.config.relative_bias == "position_time":
            by_time = self.param("time_bias", small, (TIME_BUCKETS,))
        slots = layout.num_slots

        def bias(block: Block) -> Array:
            rows = slice(block.row_start, block.row_stop)
            keys = slice(slots + block.item_start, block.key_stop)
            distance = layout.place[:, rows, None] - layout.place[:, None, keys]
            items = by_distance[jnp.clip(distance, 0, self.max_distance)]
            if by_time is not None:
                gap = layout.row_times[:, rows, None] - layout.key_times[:, None, keys]
                items = items + by_time[time_bucket(gap)]
            if block.key_start:
                return items
            memory = jnp.broadcast_to(by_slot[layout.slot_ids], (*items.shape[:2], slots))
            return jnp.concatenate([memory, items], axis=-1)

        return tuple(bias(block) for block in layout.blocks)
