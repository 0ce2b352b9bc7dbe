"""Softmax attention by cuDNN, through JAX, on NVIDIA GPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.attention import Dropping, Layout, Weighing, mask_of


def unfit(q, weighing: Weighing, biases, dropping: Dropping | None) -> str:
    """Why cuDNN cannot take a pass, or nothing."""
    if weighing.norm:
        return "pointwise SiLU (model.backbone=hstu) is no softmax"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16, not {q.dtype} (config.model.dtype=bfloat16)"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"head dimension {q.shape[-1]} is no multiple of 8 up to 128"
    if dropping is not None:
        return "attention weights are dropped by a hash of our own (config.model.dropout=0)"
    return "" if biases is None else "a relative bias is HSTU's"


def cudnn(q, k, v, layout: Layout, weighing: Weighing, biases, dropping: Dropping | None):
    """As `attention.dense`, for softmax without dropout in bfloat16.

    Raises:
      UserError: the pass does not fit, see `unfit`.
    """
    reason = unfit(q, weighing, biases, dropping)
    if reason:
        raise UserError(
            f"config.compute.attention=cudnn does not fit: {reason}. Use auto or dense."
        )
    outputs, kept = [], k.shape[1] - q.shape[1]
    for block in layout.blocks:
        rows = slice(block.row_start - kept, block.row_stop - kept)
        block_k, block_v = (block.keys(x, layout.num_slots) for x in (k, v))
        mask = mask_of(block, layout.num_slots)[:, None]
        out = jax.nn.dot_product_attention(
            q[:, rows], block_k, block_v, mask=mask, scale=1.0, implementation="cudnn"
        )
        # It gives rows that see nothing the mean of all values.
        outputs.append(jnp.where(jnp.any(mask, axis=-1)[:, 0, :, None, None], out, 0))
    return jnp.concatenate(outputs, axis=1)
