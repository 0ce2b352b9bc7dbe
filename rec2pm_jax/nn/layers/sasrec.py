"""The SASRec layer (Kang and McAuley 2018), as generative-recommenders builds it."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.attention import (
    AttentionDropout,
    AttentionSpec,
    KeyValues,
    Layout,
    attend,
    weight_recorder,
)
from rec2pm_jax.nn.cache import InPlaceCache, Rows
from rec2pm_jax.nn.dropout import Dropout, dropped_of_256
from rec2pm_jax.nn.initializers import scaled_identity
from rec2pm_jax.nn.registry import LayerSpec, register_backbone
from rec2pm_jax.typing import Array

# Embedded events start with elements of about 0.02 * sqrt(64) = 1 / 6; queries are layer-normed.
COPY_GAIN = 6.0
EPSILON = 1e-8  # of both layer norms


@register_backbone("sasrec", reads=("ffn_dim", "identity_init"))
class SASRecLayer(nn.Module):
    """q = LN(x); z = LN(q + MHA(q, x, x)); y = z + Drop(W2 Drop(relu(W1 z))).

    LN has no affine part. Keys and values come from x itself, as in generative-recommenders' `SASREC`.
    Attention weights are dropped at the same rate.

    With `identity_init`, values times output projection start as a multiple of the identity. Attention
    then begins by summing the embeddings of the items it sees, so that, with tied item embeddings,
    frequent items score high from the first step. Memory tokens carry that sum, and a reader that
    copies gives them gradients. From random kernels the same circuit takes many epochs to appear.
    """

    spec: LayerSpec

    def __post_init__(self) -> None:
        if self.spec.config.relative_bias != "none":
            raise UserError(
                "config.model.relative_bias is for config.model.backbone=hstu; sasrec has none."
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Array,  # B tokens D
        layout: Layout,
        rows: Array | None,  # B
        cache: KeyValues | InPlaceCache | None = None,
        wanted: Rows | None = None,
    ) -> tuple[Array, KeyValues]:
        """Apply the layer.

        Args:
          x: [B, tokens, D], without the tokens that are in the cache.
          layout: who sees whom.
          rows: int32 [B], row numbers for `Dropout`; None switches dropout off.
          cache: keys and values of the layout's first tokens.
          wanted: the tokens of x that are the layout's rows. None: all of them.

        Returns:
          (outputs [B, rows, D] at the layout's rows, keys and values of all tokens of x).
        """
        config = self.spec.config
        dtype = jnp.dtype(config.dtype)
        layer_norm = partial(
            nn.LayerNorm, epsilon=EPSILON, use_bias=False, use_scale=False, dtype=dtype
        )
        heads = partial(nn.DenseGeneral, features=(config.heads, config.key_dim), dtype=dtype)

        def drop(x: Array) -> Array:
            return Dropout(config.dropout)(x, rows)

        value_init = out_init = nn.initializers.lecun_normal()
        if config.identity_init:
            value_init, out_init = scaled_identity(COPY_GAIN), scaled_identity(1.0)

        query_input = layer_norm(name="attention_norm")(x if wanted is None else wanted.of(x))
        q = heads(name="query")(query_input) * config.key_dim**-0.5
        own = KeyValues(heads(name="key")(x), heads(kernel_init=value_init, name="value")(x))
        k, v = own if cache is None else cache.before(own)

        dropped = dropped_of_256(config.dropout)
        dropout = None
        if rows is not None and dropped:
            dropout = AttentionDropout(self.make_rng("dropout"), rows, dropped)
        spec = AttentionSpec(dropout=dropout)
        a = attend(q, k, v, layout, spec, self.spec.compute, record=weight_recorder(self))
        project = partial(nn.DenseGeneral, config.dim, dtype=dtype)
        a = project(axis=(-2, -1), kernel_init=out_init, name="out")(a)
        z = layer_norm(name="ffn_norm")(query_input + a)
        f = drop(nn.relu(nn.Dense(config.ffn_dim or config.dim, dtype=dtype, name="ffn_in")(z)))
        return z + drop(nn.Dense(config.dim, dtype=dtype, name="ffn_out")(f)), own
