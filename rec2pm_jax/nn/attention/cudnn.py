"""Softmax attention by cuDNN, through JAX, on NVIDIA GPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.attention.masks import Layout, mask_of
from rec2pm_jax.nn.attention.spec import AttentionSpec
from rec2pm_jax.typing import Array

MAX_HEAD_DIM = 128  # 256 from Hopper on, which a host without a GPU cannot know


def unsupported_reason(q: Array, spec: AttentionSpec) -> str:
    """Return why cuDNN cannot compute a pass, or "" if it can; q: [B, rows, H, dqk]."""
    if spec.normalizer.norm:
        return "pointwise SiLU (config.model.backbone=hstu) is no softmax"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16, not {q.dtype} (config.model.dtype=bfloat16)"
    if q.shape[-1] % 8 or q.shape[-1] > MAX_HEAD_DIM:
        return f"head dimension {q.shape[-1]} is no multiple of 8 up to {MAX_HEAD_DIM}"
    if spec.dropout is not None:
        return "attention weights are dropped by a hash of our own (config.model.dropout=0)"
    return "" if spec.biases is None else "it takes no bias of ours"


def attend_cudnn(
    q: Array,  # B rows H dqk
    k: Array,  # B tokens H dqk
    v: Array,  # B tokens H dv
    layout: Layout,
    spec: AttentionSpec,
) -> Array:  # B rows H dv
    """Compute `attend` for softmax without dropout or bias in bfloat16.

    Raises:
      UserError: the pass is not supported, see `unsupported_reason`.
    """
    reason = unsupported_reason(q, spec)
    if reason:
        raise UserError(
            f"config.compute.attention=cudnn does not fit: {reason}. Use auto or dense."
        )
    outputs, first = [], layout.first_row
    for block in layout.blocks:
        rows = slice(block.row_start - first, block.row_stop - first)
        block_k, block_v = (_pad_to_even(block.select_keys(x, layout.num_slots), 1) for x in (k, v))
        mask = mask_of(block, layout.num_slots)[:, None]
        out = jax.nn.dot_product_attention(
            _pad_to_even(q[:, rows], 1),
            block_k,
            block_v,
            mask=_pad_to_even(_pad_to_even(mask, 2), 3),
            scale=1.0,
            implementation="cudnn",
        )
        # cuDNN gives rows that see nothing the mean of all values.
        sees = jnp.any(mask, axis=-1)[:, 0, :, None, None]
        outputs.append(jnp.where(sees, out[:, : mask.shape[2]], jnp.zeros((), out.dtype)))
    return jnp.concatenate(outputs, axis=1)


def _pad_to_even(x: Array, axis: int) -> Array:
    """Pad an axis of x to an even length, which cuDNN's gradient with a mask requires."""
    padding = [(0, x.shape[d] % 2 if d == axis else 0) for d in range(x.ndim)]
    return jnp.pad(x, padding)
