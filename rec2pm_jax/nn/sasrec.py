"""The SASRec layer (Kang and McAuley 2018), as generative-recommenders builds it."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from rec2pm_jax.config import ModelConfig
from rec2pm_jax.nn.attention import Layout, attend, softmax_weights
from rec2pm_jax.nn.dropout import Dropout
from rec2pm_jax.typing import Array


class SASRecLayer(nn.Module):
    """q = LN(x); z = LN(q + MHA(q, x, x)); y = z + Drop(W2 Drop(act(W1 z))). [B, tokens, D] -> same.

    LN has no affine part and eps 1e-8; keys and values come from x itself, as in
    generative-recommenders' `SASREC`. Attention weights are dropped at the same rate.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, layout: Layout, deterministic: bool) -> Array:
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        layer_norm = partial(
            nn.LayerNorm, epsilon=1e-8, use_bias=False, use_scale=False, dtype=dtype
        )
        heads = partial(nn.DenseGeneral, features=(cfg.heads, cfg.key_dim), dtype=dtype)
        drop = Dropout(cfg.dropout, deterministic)

        q_in = layer_norm(name="attention_norm")(x)
        q = heads(name="query")(q_in) * cfg.key_dim**-0.5
        k = heads(name="key")(x)
        v = heads(name="value")(x)
        a = attend(q, k, v, layout, lambda s, m: drop(softmax_weights(s, m)))
        a = nn.DenseGeneral(cfg.dim, axis=(-2, -1), dtype=dtype, name="out")(a)
        z = layer_norm(name="ffn_norm")(q_in + a)
        act = nn.relu if cfg.activation == "relu" else partial(nn.gelu, approximate=False)
        f = drop(act(nn.Dense(cfg.ffn_dim or cfg.dim, dtype=dtype, name="ffn_in")(z)))
        return z + drop(nn.Dense(cfg.dim, dtype=dtype, name="ffn_out")(f))
