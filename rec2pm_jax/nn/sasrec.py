"""The SASRec layer (Kang and McAuley 2018), as generative-recommenders builds it."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from rec2pm_jax.config import ComputeConfig, ModelConfig
from rec2pm_jax.nn.attention import (
    AttentionDropout,
    AttentionSpec,
    KeyValues,
    Layout,
    attend,
    weight_recorder,
)
from rec2pm_jax.nn.cache import Rows
from rec2pm_jax.nn.dropout import Dropout, dropped_of_256
from rec2pm_jax.typing import Array

# Embedded events start with elements of about 0.02 * sqrt(64) = 1 / 6; queries are layer-normed.
COPY_GAIN = 6.0


def scaled_identity(gain: float):
    """Initialiser of a kernel as gain times the identity (a rectangular one if it is not square)."""
    return lambda key, shape, dtype=jnp.float32: gain * jnp.eye(*shape, dtype=dtype)


class SASRecLayer(nn.Module):
    """q = LN(x); z = LN(q + MHA(q, x, x)); y = z + Drop(W2 Drop(act(W1 z))). [B, tokens, D] -> same.

    Called with (x, layout, rows, kept, only): `kept` are keys and values of the layout's first tokens,
    which x leaves out, or None; `only`, if any, the tokens of x that are the layout's rows. Returns (y
    at the layout's rows, keys and values of all of x's own tokens).

    LN has no affine part and eps 1e-8; keys and values come from x itself, as in
    generative-recommenders' `SASREC`. Attention weights are dropped at the same rate.

    With `identity_init`, values times output projection start as a multiple of the identity: attention
    begins by adding up the embeddings of what it sees, so that, with tied item embeddings, frequent
    items score high from the first step. Memory tokens carry that sum on, and a reader that copies
    gives them gradients; from random kernels the same circuit takes many epochs to appear.
    """

    config: ModelConfig
    compute: ComputeConfig = ComputeConfig()  # how attention is computed, see `attend`

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
            nn.LayerNorm, epsilon=1e-8, use_bias=False, use_scale=False, dtype=dtype
        )
        heads = partial(nn.DenseGeneral, features=(cfg.heads, cfg.key_dim), dtype=dtype)

        def drop(x):
            return Dropout(cfg.dropout)(x, rows)

        values = out = nn.initializers.lecun_normal()
        if cfg.uses_identity_init:
            values, out = scaled_identity(COPY_GAIN), scaled_identity(1.0)

        q_in = layer_norm(name="attention_norm")(x if only is None else only.of(x))
        q = heads(name="query")(q_in) * cfg.key_dim**-0.5
        own = KeyValues(heads(name="key")(x), heads(kernel_init=values, name="value")(x))
        k, v = own if kept is None else kept.before(own)

        dropped = dropped_of_256(cfg.dropout)
        dropout = None
        if rows is not None and dropped:
            dropout = AttentionDropout(self.make_rng("dropout"), rows, dropped)
        spec = AttentionSpec(dropout=dropout)
        a = attend(q, k, v, layout, spec, self.compute, record=weight_recorder(self))
        a = nn.DenseGeneral(cfg.dim, axis=(-2, -1), kernel_init=out, dtype=dtype, name="out")(a)
        z = layer_norm(name="ffn_norm")(q_in + a)
        act = nn.relu if cfg.activation == "relu" else partial(nn.gelu, approximate=False)
        f = drop(act(nn.Dense(cfg.ffn_dim or cfg.dim, dtype=dtype, name="ffn_in")(z)))
        return z + drop(nn.Dense(cfg.dim, dtype=dtype, name="ffn_out")(f)), own
