"""Attention with all scores of a block at once: the definition of attention in this project."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from rec2pm_jax.nn.attention.masks import Layout, mask_of
from rec2pm_jax.nn.attention.spec import AttentionSpec
from rec2pm_jax.typing import Array


def attend_dense(
    q: Array,  # B rows H dqk
    k: Array,  # B tokens H dqk
    v: Array,  # B tokens H dv
    layout: Layout,
    spec: AttentionSpec,
    record: Callable[[Array], None] | None = None,
) -> Array:  # B rows H dv
    """Compute `attend` block by block; the other implementations are tested against this one."""
    outputs = []
    first = layout.first_row
    for number, block in enumerate(layout.blocks):
        rows = slice(block.row_start - first, block.row_stop - first)
        block_k, block_v = (block.select_keys(x, layout.num_slots) for x in (k, v))
        # Rounding scores to bfloat16 before the exponential would cost more than it saves.
        scores = jnp.einsum(
            "bqhd,bkhd->bhqk", q[:, rows], block_k, preferred_element_type=jnp.float32
        )
        if spec.biases is not None:
            scores = scores + spec.biases[number][:, None].astype(jnp.float32)
        weights = spec.normalizer(scores, mask_of(block, layout.num_slots)[:, None])
        if record is not None:
            record(weights)
        if spec.dropout is not None:
            weights = weights * spec.dropout.factors(number, weights.shape[1:])
        outputs.append(jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), block_v))
    return jnp.concatenate(outputs, axis=1)
