"""What the attention kernels compute on a tile of keys and rows: pointwise SiLU or softmax.

All features stand first, see `pallas_tiles.py`. References hold one user: q, out and what else
belongs to rows a tile of rows, keys and values all of them. Sums are kept in float32.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental import pallas as pl

from rec2pm_jax.nn.pallas_tiles import (
    Head,
    Sizes,
    Tile,
    dot,
    heads_of,
    over_tiles,
    rows_read,
)
from rec2pm_jax.typing import Array

LOWEST = -1e30  # of scores: a finite stand-in for minus infinity


def _heads(sizes: Sizes, dtype) -> list[tuple[Head, Head]]:
    """Where the heads are in q and k, and where in v."""
    sublanes = 32 // jnp.dtype(dtype).itemsize
    both = (heads_of(n, sizes.heads, sublanes) for n in (sizes.features, sizes.value_features))
    return list(zip(*both, strict=True))


def _scores(sizes: Sizes, tile: Tile, q: Array, head: Head) -> Array:
    """float32 [keys, rows]. Of SiLU they are halved, as q is: SiLU(2 h) = h (1 + tanh h)."""
    scores = dot(tile.k[head.begin : head.stop], head.of(q), (0, 0), sizes.exact)
    if tile.bias is None:
        return scores
    return scores + (0.5 * tile.bias if sizes.norm else tile.bias)


def silu_forward(sizes: Sizes, seen, q, k, v, intervals, bias, out, total):
    """out: [value features, rows]; total: float32 scratch of that shape."""
    half_q = rows_read(sizes, q) * 0.5
    total[...] = jnp.zeros(total.shape, jnp.float32)

    def visit(tile: Tile):
        for head, value_head in _heads(sizes, half_q.dtype):
            half = _scores(sizes, tile, half_q, head)
            weights = jnp.where(tile.mask, half + half * jnp.tanh(half), 0.0)
            add = dot(value_head.of(tile.v), weights.astype(tile.v.dtype), (1, 0), sizes.exact)
            total[value_head.begin : value_head.stop, :] += add

    over_tiles(sizes, seen, intervals[0], k, v, bias, visit)
    out[0] = (total[...] * (1 / sizes.norm)).astype(out.dtype)


def softmax_forward(
    sizes: Sizes, seen, q, k, v, intervals, bias, out, log_sums, total, tops, parts
):
    """As `silu_forward`, with a running maximum as in FlashAttention (Dao et al. 2022).

    log_sums: float32 [H, rows], log of the sum of exp(scores); tops, parts: scratch of that shape.
    """
    q = rows_read(sizes, q)
    total[...] = jnp.zeros(total.shape, jnp.float32)
    tops[...] = jnp.full(tops.shape, LOWEST, jnp.float32)
    parts[...] = jnp.zeros(parts.shape, jnp.float32)

    def visit(tile: Tile):
        for head, value_head in _heads(sizes, q.dtype):
            row, slab = head.row, slice(value_head.begin, value_head.stop)
            scores = jnp.where(tile.mask, _scores(sizes, tile, q, head), LOWEST)
            old = tops[row, :]
            top = jnp.maximum(old, jnp.max(scores, axis=0, keepdims=True))
            weights = jnp.where(tile.mask, jnp.exp(scores - top), 0.0)
            shrink = jnp.exp(old - top)
            tops[row, :] = top
            parts[row, :] = parts[row, :] * shrink + jnp.sum(weights, axis=0, keepdims=True)
            add = dot(value_head.of(tile.v), weights.astype(tile.v.dtype), (1, 0), sizes.exact)
            total[slab, :] = total[slab, :] * value_head.spread(shrink) + add

    over_tiles(sizes, seen, intervals[0], k, v, bias, visit)
    divisor = jnp.maximum(parts[...], 1e-30)
    log_sums[0] = tops[...] + jnp.log(divisor)
    for _, value_head in _heads(sizes, q.dtype):
        total[value_head.begin : value_head.stop, :] *= value_head.spread(
            1 / divisor[value_head.row]
        )
    out[0] = total[...].astype(out.dtype)


def backward(
    sizes: Sizes,
    seen,
    q,
    k,
    v,
    intervals,
    bias,
    to_out,
    log_sums,
    inner,
    to_q,
    to_k,
    to_v,
    to_bias,
    sum_q,
    sum_k,
    sum_v,
):
    """All gradients from one look at each tile; a user's tiles of rows come one after another.

    log_sums, inner: float32 [H, rows] of softmax, else None; inner is sum(out * to_out) of each head.
    to_bias: float32 [keys, rows], or None; sum_q, sum_k, sum_v: float32 scratch.
    """
    number = pl.program_id(1)
    q, g = rows_read(sizes, q), rows_read(sizes, to_out)
    if sizes.norm:
        # SiLU'(2 h) = (1 + t)(1 + h (1 - t)) / 2 with t = tanh h: g takes the half of it.
        q, g = q * 0.5, (g * (0.5 / sizes.norm)).astype(g.dtype)
    sum_q[...] = jnp.zeros(sum_q.shape, jnp.float32)
    if to_bias is not None:
        to_bias[...] = jnp.zeros(to_bias.shape, jnp.float32)

    @pl.when(number == 0)
    def _():
        sum_k[...] = jnp.zeros(sum_k.shape, jnp.float32)
        sum_v[...] = jnp.zeros(sum_v.shape, jnp.float32)

    def weights_and_slopes(tile: Tile, head: Head, own_v, own_g):
        scores = _scores(sizes, tile, q, head)
        to_weights = dot(own_v, own_g, (0, 0), sizes.exact)
        if sizes.norm:
            gate = jnp.tanh(scores)
            weights = jnp.where(tile.mask, scores + scores * gate, 0.0)
            slopes = (1 + gate) * (1 + scores * (1 - gate)) * to_weights
        else:
            weights = jnp.where(tile.mask, jnp.exp(scores - log_sums[0, head.row, :]), 0.0)
            slopes = weights * (to_weights - inner[0, head.row, :])
        return weights, jnp.where(tile.mask, slopes, 0.0)

    def visit(tile: Tile):
        at, cells = pl.ds(tile.start, sizes.key_tile), None
        for head, value_head in _heads(sizes, q.dtype):
            slab, value_slab = (slice(h.begin, h.stop) for h in (head, value_head))
            own_g = value_head.of(g)
            weights, slopes = weights_and_slopes(tile, head, tile.v[value_slab], own_g)
            cells = slopes if cells is None else cells + slopes
            weights, slopes = weights.astype(g.dtype), slopes.astype(q.dtype)
            sum_q[slab, :] += dot(head.of(tile.k), slopes, (1, 0), sizes.exact)
            sum_k[slab, at] += dot(head.of(q), slopes, (1, 1), sizes.exact)
            sum_v[value_slab, at] += dot(own_g, weights, (1, 1), sizes.exact)
        if to_bias is not None:
            to_bias[0, at, :] = cells

    over_tiles(sizes, seen, intervals[0], k, v, bias, visit)
    to_q[0] = sum_q[...].astype(to_q.dtype)

    @pl.when(number == sizes.row_tiles - 1)
    def _():
        whole = 2.0 if sizes.norm else 1.0  # takes back the half in q and in g
        to_k[0] = (whole * sum_k[...]).astype(to_k.dtype)
        to_v[0] = (whole * sum_v[...]).astype(to_v.dtype)
