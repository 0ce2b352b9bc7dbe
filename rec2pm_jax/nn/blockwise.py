"""Attention whose scores never leave the cache.

A block of rows of a few users is computed at a time, forward and again in the backward pass, as in
FlashAttention (Dao et al. 2022). As the keys of a block of rows have static bounds, its scores fit at
once and no running maximum is needed. Memory grows with tokens, not with their square, but for the
bias of a block, which all heads share.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.attention import (
    AttentionDropout,
    Block,
    Layout,
    ScoreNormalizer,
    VisibleRange,
    mask_of,
)
from rec2pm_jax.nn.bands import Band, bands_of
from rec2pm_jax.typing import Array

SCORE_BYTES = 1 << 20  # of one block of scores: stays in the cache of a CPU core


class _Part(NamedTuple):
    """What a block of rows needs, for some users. Leaves with one row serve every user."""

    q: Array  # [b, H, rows, dqk]
    k: Array  # [b, H, keys, dqk]
    v: Array  # [b, H, keys, dv]
    bias: Array | None  # [b or 1, rows, keys]
    block: Block  # visible are [b or 1, rows]
    numbers: Array | None  # int32 [b], of `AttentionDropout.rows`


def blockwise(
    q,
    k,
    v,
    layout: Layout,
    normalizer: ScoreNormalizer,
    biases,
    dropout: AttentionDropout | None,
):
    """As `attention.dense`."""
    # Heads first: one transpose here instead of one for every block.
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    out = _attend(normalizer, q, k, v, biases, layout, dropout)
    return jnp.swapaxes(out, 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(normalizer, q, k, v, biases, layout, dropout):
    return _forward(normalizer, q, k, v, biases, layout, dropout)[0]


def _forward(normalizer, q, k, v, biases, layout, dropout):
    def rows_of(part, number):
        def run(_, part):
            scores, mask = _scores(part, layout.num_slots)
            weights, partition = _weigh(normalizer, scores, mask)
            if dropout is not None:
                weights = weights * _factors(normalizer, dropout, number, part, weights)
            out = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), part.v)
            return None, (out, partition)

        return _over_users(run, None, part)[1]

    results = []
    for band in bands_of(layout, loops=biases is None):
        if len(band.numbers) == 1:
            (number,) = band.numbers
            results.append(rows_of(_part(number, q, k, v, biases, layout, dropout), number))
            continue

        def step(_, given, band=band):
            part = _band_part(band, given, k, v, layout, dropout)
            return None, rows_of(part, given.number)

        _, made = jax.lax.scan(step, None, _turns(band, q, layout))
        results.append(jax.tree.map(band.join, made))
    outputs, partitions = zip(*results, strict=True)
    out = jnp.concatenate(outputs, axis=2)
    return out, (q, k, v, biases, layout, dropout, out, partitions)


def _backward(normalizer, saved, to_out):
    q, k, v, biases, layout, dropout, out, partitions = saved
    first = layout.first_row
    # Of softmax: sum_k weight_k d(weight_k) = <out, d(out)>, dropout included.
    inner = None if normalizer.norm else jnp.sum((out * to_out).astype(jnp.float32), axis=-1)
    to_q, to_biases = [], []
    to_k, to_v = (jnp.zeros(x.shape, jnp.float32) for x in (k, v))

    def gradients(given, number, to_shared_bias=None):
        """(Sum over users or None; of a block's q, k, v and of a bias that each user has)."""

        def run(to_shared_bias, given):
            part, g, partition, inner = given
            scores, mask = _scores(part, layout.num_slots)
            dweights = jnp.einsum("bhqd,bhkd->bhqk", g, part.v, preferred_element_type=jnp.float32)
            if normalizer.norm:
                gate = jax.nn.sigmoid(scores)
                weights = jnp.where(mask, scores * gate / normalizer.norm, 0)
                slope = gate * (1 + scores * (1 - gate)) / normalizer.norm
                dscores = jnp.where(mask, slope * dweights, 0)
            else:
                weights = jnp.where(mask, jnp.exp(scores - partition[..., None]), 0)
                if dropout is not None:
                    factors = _factors(normalizer, dropout, number, part, weights)
                    dweights = dweights * factors
                dscores = weights * (dweights - inner[..., None])
                if dropout is not None:
                    weights = weights * factors
            d = dscores.astype(q.dtype)
            dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
            # The rows are contracted with the small side in front: five times as fast on a CPU.
            back = (
                dot("bhqk,bhkd->bhqd", d, part.k).astype(q.dtype),
                dot("bhdq,bhqk->bhdk", jnp.swapaxes(part.q, 2, 3), d),
                dot("bhdq,bhqk->bhdk", jnp.swapaxes(g, 2, 3), weights.astype(v.dtype)),
            )
            by_head = None if part.bias is None else jnp.sum(dscores, axis=1)
            if to_shared_bias is not None:
                return to_shared_bias + jnp.sum(by_head, axis=0, keepdims=True), (*back, None)
            return None, (*back, by_head)

        return _over_users(run, to_shared_bias, given)

    for band, partition in zip(bands_of(layout, loops=biases is None), partitions, strict=True):
        rows = slice(band.rows.start - first, band.rows.stop - first)
        of_rows = (to_out[:, :, rows], partition, None if inner is None else inner[:, :, rows])
        if len(band.numbers) == 1:
            (number,) = band.numbers
            carry = None
            if biases is not None and biases[number].shape[0] == 1:
                carry = jnp.zeros(biases[number].shape, jnp.float32)
            part = _part(number, q, k, v, biases, layout, dropout)
            carry, (dq, dk, dv, to_bias) = gradients((part, *of_rows), number, carry)
            to_k = _add_keys(to_k, jnp.swapaxes(dk, 2, 3), layout.blocks[number], layout.num_slots)
            to_v = _add_keys(to_v, jnp.swapaxes(dv, 2, 3), layout.blocks[number], layout.num_slots)
            if biases is not None:
                to_bias = to_bias if carry is None else carry
                to_biases.append(to_bias.astype(biases[number].dtype))
        else:

            def step(sums, given, band=band):
                turn, of_rows = given
                part = _band_part(band, turn, k, v, layout, dropout)
                _, (dq, *back, _) = gradients((part, *of_rows), turn.number)
                sums = tuple(
                    band.add(total, jnp.swapaxes(d, 2, 3), turn.start, layout.num_slots)
                    for total, d in zip(sums, back, strict=True)
                )
                return sums, dq

            turns = (_turns(band, q, layout), jax.tree.map(band.split, of_rows))
            (to_k, to_v), dq = jax.lax.scan(step, (to_k, to_v), turns)
            dq = band.join(dq)
        to_q.append(dq)
    to_q = jnp.concatenate(to_q, axis=2)
    biases = None if biases is None else tuple(to_biases)
    return to_q, to_k.astype(k.dtype), to_v.astype(v.dtype), biases, None, None


_attend.defvjp(_forward, _backward)


def _part(number: int, q, k, v, biases, layout: Layout, dropout: AttentionDropout | None) -> _Part:
    block = layout.blocks[number]
    first = layout.first_row
    slots = layout.num_slots
    k, v = (jnp.swapaxes(block.keys(jnp.swapaxes(x, 1, 2), slots), 1, 2) for x in (k, v))
    return _Part(
        q=q[:, :, block.row_start - first : block.row_stop - first],
        k=k,
        v=v,
        bias=None if biases is None else biases[number],
        block=block,
        numbers=None if dropout is None else dropout.rows,
    )


class _Turn(NamedTuple):
    """One turn of the loop over a band's blocks."""

    number: Array  # of the block
    start: Array  # its first item
    visible: VisibleRange  # by its own keys, [b or 1, rows]
    q: Array  # [b, H, rows, dqk]


def _turns(band: Band, q: Array, layout: Layout) -> _Turn:
    """All turns, on a leading axis."""
    rows = slice(band.rows.start - layout.first_row, band.rows.stop - layout.first_row)
    return _Turn(
        jnp.asarray(band.numbers, jnp.int32),
        jnp.asarray(band.starts),
        band.relative_ranges(layout.num_slots),
        band.split(q[:, :, rows]),
    )


def _band_part(
    band: Band, turn: _Turn, k, v, layout: Layout, dropout: AttentionDropout | None
) -> _Part:
    k, v = (band.keys(x, turn.start, layout.num_slots) for x in (k, v))
    block = band.block(turn.visible, layout.num_slots)
    return _Part(turn.q, k, v, None, block, None if dropout is None else dropout.rows)


def _scores(part: _Part, num_slots: int) -> tuple[Array, Array]:
    scores = jnp.einsum("bhqd,bhkd->bhqk", part.q, part.k, preferred_element_type=jnp.float32)
    if part.bias is not None:
        scores = scores + part.bias[:, None].astype(jnp.float32)
    return scores, mask_of(part.block, num_slots)[:, None]


def _weigh(normalizer: ScoreNormalizer, scores: Array, mask: Array) -> tuple[Array, Array | None]:
    """Weights, and of softmax the log of their sum before division, [b, H, rows]."""
    if normalizer.norm:
        return normalizer(scores, mask), None
    top = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=-1e30)
    weights = jnp.where(mask, jnp.exp(scores - top), 0)
    total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
    return weights / total, (top + jnp.log(total))[..., 0]


def _factors(
    normalizer, dropout: AttentionDropout, number: int, part: _Part, weights: Array
) -> Array:
    some = AttentionDropout(dropout.key, part.numbers)
    return some.factors(normalizer, number, weights.shape[1:])


def _over_users(run, carry, given):
    """Scans `run(carry, given) -> (carry, results)` over groups of users whose scores fit the cache."""
    leaves, structure = jax.tree.flatten(given)
    part = given if isinstance(given, _Part) else given[0]
    users, heads, rows, _ = part.q.shape
    fit = max(1, SCORE_BYTES // (4 * heads * rows * part.k.shape[2]))
    size = max(n for n in range(1, users + 1) if users % n == 0 and n <= max(fit, 1))
    if size == users:
        return run(carry, given)
    each = [x.shape[0] == users for x in leaves]
    grouped = [
        x.reshape(-1, size, *x.shape[1:]) for x, own in zip(leaves, each, strict=True) if own
    ]

    def step(carry, group):
        group = iter(group)
        chosen = [next(group) if own else x for x, own in zip(leaves, each, strict=True)]
        return run(carry, jax.tree.unflatten(structure, chosen))

    carry, results = jax.lax.scan(step, carry, grouped)
    return carry, jax.tree.map(lambda x: x.reshape(users, *x.shape[2:]), results)


def _add_keys(total: Array, part: Array, block: Block, num_slots: int) -> Array:
    """Adds [B, H, keys, d] of a block's keys to [B, H, tokens, d] of all of them."""
    slots = 0 if block.key_start else num_slots
    first = num_slots + block.item_start
    total = total.at[:, :, :slots].add(part[:, :, :slots])
    return total.at[:, :, first : block.key_stop].add(part[:, :, slots:])
