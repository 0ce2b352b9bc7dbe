"""Attention on intervals as a Pallas kernel for TPUs, forward and backward, SiLU and softmax.

No score leaves the chip's vector memory. Tiles of keys that no row of a tile sees are skipped, by each
user's intervals. A user's keys and values stay in vector memory while tiles of rows pass by. So every
array is read and written once, and the backward pass is one kernel of five products. JAX's splash
attention takes static masks only, and pads heads to 128 features.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.attention import pallas_kernels
from rec2pm_jax.nn.attention.masks import Layout
from rec2pm_jax.nn.attention.pallas_call import KernelCall, run_kernel
from rec2pm_jax.nn.attention.pallas_intervals import (
    count_reachable_keys,
    count_reachable_tiles,
    join_biases,
    layout_intervals,
)
from rec2pm_jax.nn.attention.pallas_kernels import BackwardRefs, ForwardRefs
from rec2pm_jax.nn.attention.pallas_tiles import Sizes
from rec2pm_jax.nn.attention.spec import AttentionSpec
from rec2pm_jax.nn.recompute import attended
from rec2pm_jax.typing import Array

ROW_TILE, KEY_TILE = 128, 256
MAX_VMEM = 96 << 20  # bytes, of 128 MiB on v5e and v6e


def unsupported_reason(q: Array, k: Array, v: Array, spec: AttentionSpec) -> str:
    """Return why the kernel cannot compute a pass, or "" if it can; arguments as in `attend`."""
    if spec.dropout is not None:
        return "softmax weights are dropped out (config.model.dropout=0)"
    needed = _count_vmem_bytes(q, k, v, spec.biases is not None)
    if needed > MAX_VMEM:
        return (
            f"{k.shape[1]} keys of {k.shape[2]} x {k.shape[3]} need {needed >> 20} MiB of vector "
            f"memory, more than {MAX_VMEM >> 20}"
        )
    return ""


def attend_pallas(
    q: Array,  # B rows H dqk
    k: Array,  # B tokens H dqk
    v: Array,  # B tokens H dv
    layout: Layout,
    spec: AttentionSpec,
) -> Array:  # B rows H dv
    """Compute `attend` on a TPU; on other platforms the kernel is interpreted, which is for tests.

    Raises:
      UserError: the pass is not supported, see `unsupported_reason`.
    """
    reason = unsupported_reason(q, k, v, spec)
    if reason:
        raise UserError(
            f"config.compute.attention=pallas does not fit: {reason}. Use auto or dense."
        )
    batch, rows, heads, _ = q.shape
    intervals = layout_intervals(layout)
    sizes = _sizes(q, k, v, layout, spec, shared=intervals.shape[0] == 1)

    def features_first(x: Array) -> Array:  # [B, tokens, H, d] -> [B, H * d, tokens]
        return jnp.swapaxes(x.reshape(*x.shape[:2], -1), 1, 2)

    bias = None if spec.biases is None else join_biases(spec.biases, layout, k.shape[1])
    q, k, v = (features_first(x) for x in (q, k, v))
    out = _attend(sizes, q, k, v, bias, intervals)
    return jnp.swapaxes(out, 1, 2).reshape(batch, rows, heads, -1)


def _sizes(
    q: Array, k: Array, v: Array, layout: Layout, spec: AttentionSpec, shared: bool
) -> Sizes:
    heads, keys = q.shape[2], k.shape[1]
    key_tile = KEY_TILE if keys > ROW_TILE else ROW_TILE
    return Sizes(
        norm=spec.normalizer.norm,
        heads=heads,
        features=heads * q.shape[3],
        value_features=heads * v.shape[3],
        rows=q.shape[1],
        keys=keys,
        row_tile=ROW_TILE,
        key_tile=key_tile,
        shared=shared,
        exact=q.dtype == jnp.float32,
        pairs=sum(
            (block.row_stop - block.row_start) * count_reachable_keys(block, layout.num_slots)
            for block in layout.blocks
        ),
        tiles=count_reachable_tiles(layout, ROW_TILE, key_tile),
        vmem=_count_vmem_bytes(q, k, v, spec.biases is not None),
    )


def _count_vmem_bytes(q: Array, k: Array, v: Array, biased: bool) -> int:
    """Return what the backward pass needs: double-buffered arrays of keys, and float32 sums."""
    keys = -(-k.shape[1] // KEY_TILE) * KEY_TILE
    features = k.shape[2] * (k.shape[3] + v.shape[3])
    of_keys = keys * features * (4 * q.dtype.itemsize + 4)
    of_bias = 4 * keys * ROW_TILE * 4 if biased else 0
    return of_keys + of_bias + (2 << 20)  # tiles of rows and of scores


class _Saved(NamedTuple):
    """What the forward pass stores for the backward pass."""

    q: Array  # B features rows
    k: Array  # B features keys
    v: Array  # B value_features keys
    bias: Array | None  # 1|B keys rows
    intervals: Array  # 1|B 4 rows
    out: Array | None = None  # B value_features rows, of softmax
    log_sums: Array | None = None  # B H rows, of softmax


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    sizes: Sizes,
    q: Array,  # B features rows
    k: Array,  # B features keys
    v: Array,  # B value_features keys
    bias: Array | None,  # 1|B keys rows
    intervals: Array,  # 1|B 4 rows
) -> Array:  # B value_features rows
    return _forward(sizes, q, k, v, bias, intervals)[0]


def _forward(
    sizes: Sizes, q: Array, k: Array, v: Array, bias: Array | None, intervals: Array
) -> tuple[Array, _Saved]:
    users = len(q)
    arrays = {"q": q, "k": k, "v": v, "intervals": intervals, "bias": bias}
    out = jax.ShapeDtypeStruct((users, sizes.value_features, sizes.rows), v.dtype)
    scratch = {"total": (sizes.value_features, sizes.row_tile)}
    saved = _Saved(q, k, v, bias, intervals)
    if sizes.norm:  # SiLU's gradient needs no results of the forward pass
        call = KernelCall("attention_forward", pallas_kernels.silu_forward, ForwardRefs, 2)
        made = run_kernel(sizes, call, arrays, {"out": out}, scratch)
        return attended(made["out"]), saved
    call = KernelCall("attention_forward", pallas_kernels.softmax_forward, ForwardRefs, 2)
    log_sums = jax.ShapeDtypeStruct((users, sizes.heads, sizes.rows), jnp.float32)
    per_row = (sizes.heads, sizes.row_tile)
    scratch |= {"tops": per_row, "sums": per_row}
    made = run_kernel(sizes, call, arrays, {"out": out, "log_sums": log_sums}, scratch)
    made = {name: attended(x) for name, x in made.items()}
    return made["out"], saved._replace(**made)


def _backward(sizes: Sizes, saved: _Saved, to_out: Array) -> tuple[Array | None, ...]:
    """Return the gradients of q, k, v and bias; None for intervals."""
    q, k, v, bias, intervals, out, log_sums = saved
    inner = None
    if out is not None:  # softmax
        # sum_k weight_k d(weight_k) = <out, d(out)>
        inner = out.astype(jnp.float32) * to_out.astype(jnp.float32)
        inner = jnp.sum(inner.reshape(len(q), sizes.heads, -1, sizes.rows), axis=2)
    arrays = {
        **{"q": q, "k": k, "v": v, "intervals": intervals, "bias": bias},
        **{"to_out": to_out, "log_sums": log_sums, "inner": inner},
    }
    gradients = (("to_q", q), ("to_k", k), ("to_v", v))
    outputs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in gradients}
    if bias is not None:
        outputs["to_bias"] = jax.ShapeDtypeStruct((len(q), *bias.shape[1:]), jnp.float32)
    scratch = {
        "sum_q": (sizes.features, sizes.row_tile),
        "sum_k": (sizes.features, sizes.padded_keys),
        "sum_v": (sizes.value_features, sizes.padded_keys),
    }
    call = KernelCall("attention_backward", pallas_kernels.backward, BackwardRefs, 5)
    made = run_kernel(sizes, call, arrays, outputs, scratch)
    to_bias = None
    if bias is not None:
        to_bias = made["to_bias"]
        if len(bias) == 1:
            to_bias = jnp.sum(to_bias, axis=0, keepdims=True)
    return made["to_q"], made["to_k"], made["to_v"], to_bias, None


_attend.defvjp(_forward, _backward)
