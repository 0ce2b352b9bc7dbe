"""What the attention kernels compute on a tile of keys and rows, for pointwise SiLU and softmax.

All arrays have features first, see `pallas_tiles.py`. References hold one user: arrays with an axis of
rows hold a tile of rows, keys and values are whole. Sums are float32.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from rec2pm_jax.nn.attention.pallas_tiles import (
    Head,
    KeyRefs,
    Ref,
    Sizes,
    Tile,
    dot,
    for_each_tile,
    place_heads,
    read_rows,
)
from rec2pm_jax.typing import Array

LOWEST = -1e30  # of scores: a finite stand-in for minus infinity


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardRefs(KeyRefs):
    """References of the forward kernels; `log_sums`, `tops` and `sums` are None for SiLU."""

    q: Ref  # 1 features rows
    out: Ref  # 1 value_features rows
    log_sums: Ref = None  # 1 H rows, float32: log of the sum of exp(scores)
    # scratch, float32
    total: Ref  # value_features rows: sum of weights times values
    tops: Ref = None  # H rows: largest score up to now
    sums: Ref = None  # H rows: sum of exp(scores - tops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackwardRefs(KeyRefs):
    """References of the backward kernel; `log_sums` and `inner` are None for SiLU."""

    q: Ref  # 1 features rows
    to_out: Ref  # 1 value_features rows: gradient of the outputs
    log_sums: Ref = None  # 1 H rows, float32
    inner: Ref = None  # 1 H rows, float32: sum(out * to_out) of each head
    to_q: Ref  # 1 features rows
    to_k: Ref  # 1 features keys
    to_v: Ref  # 1 value_features keys
    to_bias: Ref = None  # 1 keys rows, float32; None without a bias
    # scratch, float32
    sum_q: Ref  # features rows
    sum_k: Ref  # features keys
    sum_v: Ref  # value_features keys


def _heads(sizes: Sizes, dtype: DTypeLike) -> list[tuple[Head, Head]]:
    """Return where each head is in q and k, and where in v."""
    sublanes = 32 // jnp.dtype(dtype).itemsize
    both = (place_heads(n, sizes.heads, sublanes) for n in (sizes.features, sizes.value_features))
    return list(zip(*both, strict=True))


def _scores(sizes: Sizes, tile: Tile, q: Array, head: Head) -> Array:
    """Return scores, float32 [keys, rows].

    For SiLU they are halved, as q is: SiLU(2 h) = h (1 + tanh h).
    """
    scores = dot(tile.k[head.slab], head.select(q), (0, 0), sizes.exact)
    if tile.bias is None:
        return scores
    return scores + (0.5 * tile.bias if sizes.norm else tile.bias)


def silu_forward(sizes: Sizes, tiles: Ref, refs: ForwardRefs) -> None:
    """Write the outputs of pointwise SiLU attention for a tile of rows."""
    half_q = read_rows(sizes, refs.q) * 0.5
    total = refs.total
    total[...] = jnp.zeros(total.shape, jnp.float32)

    def visit(tile: Tile) -> None:
        for head, value_head in _heads(sizes, half_q.dtype):
            half = _scores(sizes, tile, half_q, head)
            weights = jnp.where(tile.mask, half + half * jnp.tanh(half), 0.0)
            add = dot(value_head.select(tile.v), weights.astype(tile.v.dtype), (1, 0), sizes.exact)
            total[value_head.slab, :] += add

    for_each_tile(sizes, tiles, refs, visit)
    refs.out[0] = (total[...] * (1 / sizes.norm)).astype(refs.out.dtype)


def softmax_forward(sizes: Sizes, tiles: Ref, refs: ForwardRefs) -> None:
    """Write the outputs and log sums of softmax attention for a tile of rows.

    The maximum of the scores is a running one, as in FlashAttention (Dao et al. 2022).
    """
    q = read_rows(sizes, refs.q)
    total, tops, sums = refs.total, refs.tops, refs.sums
    total[...] = jnp.zeros(total.shape, jnp.float32)
    tops[...] = jnp.full(tops.shape, LOWEST, jnp.float32)
    sums[...] = jnp.zeros(sums.shape, jnp.float32)

    def visit(tile: Tile) -> None:
        for head, value_head in _heads(sizes, q.dtype):
            row, slab = head.row, value_head.slab
            scores = jnp.where(tile.mask, _scores(sizes, tile, q, head), LOWEST)
            old = tops[row, :]
            top = jnp.maximum(old, jnp.max(scores, axis=0, keepdims=True))
            weights = jnp.where(tile.mask, jnp.exp(scores - top), 0.0)
            shrink = jnp.exp(old - top)
            tops[row, :] = top
            sums[row, :] = sums[row, :] * shrink + jnp.sum(weights, axis=0, keepdims=True)
            add = dot(value_head.select(tile.v), weights.astype(tile.v.dtype), (1, 0), sizes.exact)
            total[slab, :] = total[slab, :] * value_head.spread(shrink) + add

    for_each_tile(sizes, tiles, refs, visit)
    divisor = jnp.maximum(sums[...], 1e-30)
    refs.log_sums[0] = tops[...] + jnp.log(divisor)
    for _, value_head in _heads(sizes, q.dtype):
        total[value_head.slab, :] *= value_head.spread(1 / divisor[value_head.row])
    refs.out[0] = total[...].astype(refs.out.dtype)


def backward(sizes: Sizes, tiles: Ref, refs: BackwardRefs) -> None:
    """Write all gradients, with one visit of each tile.

    A user's tiles of rows run one after another, so gradients of keys are summed over them in scratch.
    """
    number = pl.program_id(1)
    q, to_out = read_rows(sizes, refs.q), read_rows(sizes, refs.to_out)
    if sizes.norm:
        # SiLU'(2 h) = (1 + t)(1 + h (1 - t)) / 2 with t = tanh h: to_out takes the half of it.
        q, to_out = q * 0.5, (to_out * (0.5 / sizes.norm)).astype(to_out.dtype)
    sum_q, sum_k, sum_v = refs.sum_q, refs.sum_k, refs.sum_v
    sum_q[...] = jnp.zeros(sum_q.shape, jnp.float32)
    if refs.to_bias is not None:
        refs.to_bias[...] = jnp.zeros(refs.to_bias.shape, jnp.float32)

    @pl.when(number == 0)
    def _() -> None:
        sum_k[...] = jnp.zeros(sum_k.shape, jnp.float32)
        sum_v[...] = jnp.zeros(sum_v.shape, jnp.float32)

    def weights_and_slopes(
        tile: Tile, head: Head, head_v: Array, head_to_out: Array
    ) -> tuple[Array, Array]:
        scores = _scores(sizes, tile, q, head)
        to_weights = dot(head_v, head_to_out, (0, 0), sizes.exact)
        if sizes.norm:
            gate = jnp.tanh(scores)
            weights = jnp.where(tile.mask, scores + scores * gate, 0.0)
            slopes = (1 + gate) * (1 + scores * (1 - gate)) * to_weights
        else:
            weights = jnp.where(tile.mask, jnp.exp(scores - refs.log_sums[0, head.row, :]), 0.0)
            slopes = weights * (to_weights - refs.inner[0, head.row, :])
        return weights, jnp.where(tile.mask, slopes, 0.0)

    def visit(tile: Tile) -> None:
        at, to_bias = pl.ds(tile.start, sizes.key_tile), None
        for head, value_head in _heads(sizes, q.dtype):
            slab, value_slab = head.slab, value_head.slab
            head_to_out = value_head.select(to_out)
            weights, slopes = weights_and_slopes(tile, head, tile.v[value_slab], head_to_out)
            to_bias = slopes if to_bias is None else to_bias + slopes
            weights, slopes = weights.astype(to_out.dtype), slopes.astype(q.dtype)
            sum_q[slab, :] += dot(head.select(tile.k), slopes, (1, 0), sizes.exact)
            sum_k[slab, at] += dot(head.select(q), slopes, (1, 1), sizes.exact)
            sum_v[value_slab, at] += dot(head_to_out, weights, (1, 1), sizes.exact)
        if refs.to_bias is not None:
            refs.to_bias[0, at, :] = to_bias

    for_each_tile(sizes, tiles, refs, visit)
    refs.to_q[0] = sum_q[...].astype(refs.to_q.dtype)

    @pl.when(number == sizes.row_tiles - 1)
    def _() -> None:
        whole = 2.0 if sizes.norm else 1.0  # undoes the half in q and in to_out
        refs.to_k[0] = (whole * sum_k[...]).astype(refs.to_k.dtype)
        refs.to_v[0] = (whole * sum_v[...]).astype(refs.to_v.dtype)
