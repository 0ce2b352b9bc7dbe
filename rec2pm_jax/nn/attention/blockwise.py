"""Attention whose scores never leave the cache of a CPU core.

Scores of a block of rows of a few users are computed at a time, and recomputed in the backward pass,
as in FlashAttention (Dao et al. 2022). The keys of a block have static bounds, so all scores of its
rows fit at once and no running maximum is needed. Memory grows linearly with tokens. Only a bias needs
[rows, keys] numbers, which all heads share.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.attention.block_inputs import (
    Biases,
    BlockInputs,
    LoopedBlock,
    add_to_keys,
    scan_users,
    select_block,
    select_looped_block,
    stack_blocks,
)
from rec2pm_jax.nn.attention.masks import Layout, mask_of
from rec2pm_jax.nn.attention.row_bands import Band, group_blocks
from rec2pm_jax.nn.attention.spec import AttentionDropout, AttentionSpec, ScoreNormalizer
from rec2pm_jax.typing import Array


def attend_blockwise(
    q: Array,  # B rows H dqk
    k: Array,  # B tokens H dqk
    v: Array,  # B tokens H dv
    layout: Layout,
    spec: AttentionSpec,
) -> Array:  # B rows H dv
    """Compute `attend` without storing scores."""
    # Heads first: one transpose here instead of one for every block.
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    out = _attend(spec.normalizer, q, k, v, spec.biases, layout, spec.dropout)
    return jnp.swapaxes(out, 1, 2)


class _SoftmaxSums(NamedTuple):
    """What the gradient of softmax needs of the forward pass."""

    log_sums: Array  # b H rows: log of the sum of exp(scores)
    inner: Array  # b H rows: <out, gradient of out>


class _RowInputs(NamedTuple):
    """What the backward pass reads besides `BlockInputs`."""

    to_out: Array  # b H rows dv: gradient of the outputs
    softmax: _SoftmaxSums | None  # None for SiLU


class _Saved(NamedTuple):
    """What the forward pass stores for the backward pass."""

    q: Array  # B H rows dqk
    k: Array  # B H tokens dqk
    v: Array  # B H tokens dv
    biases: Biases
    layout: Layout
    dropout: AttentionDropout | None
    out: Array  # B H rows dv
    log_sums: tuple[Array | None, ...]  # one per band


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    normalizer: ScoreNormalizer,
    q: Array,  # B H rows dqk
    k: Array,  # B H tokens dqk
    v: Array,  # B H tokens dv
    biases: Biases,
    layout: Layout,
    dropout: AttentionDropout | None,
) -> Array:  # B H rows dv
    return _forward(normalizer, q, k, v, biases, layout, dropout)[0]


def _forward(
    normalizer: ScoreNormalizer,
    q: Array,
    k: Array,
    v: Array,
    biases: Biases,
    layout: Layout,
    dropout: AttentionDropout | None,
) -> tuple[Array, _Saved]:
    def run_block(inputs: BlockInputs, number: Array | int) -> tuple[Array, Array | None]:
        def run(_: None, inputs: BlockInputs) -> tuple[None, tuple[Array, Array | None]]:
            scores, mask = _scores(inputs, layout.num_slots)
            weights, log_sums = _weights(normalizer, scores, mask)
            if dropout is not None:
                weights = weights * _dropout_factors(dropout, number, inputs)
            out = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), inputs.v)
            return None, (out, log_sums)

        return scan_users(run, None, inputs, inputs)[1]

    results = []
    for band in group_blocks(layout, loops=biases is None):
        if len(band.numbers) == 1:
            (number,) = band.numbers
            inputs = select_block(number, q, k, v, biases, layout, dropout)
            results.append(run_block(inputs, number))
            continue

        def step(
            _: None, block: LoopedBlock, band: Band = band
        ) -> tuple[None, tuple[Array, Array | None]]:
            inputs = select_looped_block(band, block, k, v, layout, dropout)
            return None, run_block(inputs, block.number)

        _, stacked = jax.lax.scan(step, None, stack_blocks(band, q, layout))
        results.append(jax.tree.map(band.join, stacked))
    outputs, log_sums = zip(*results, strict=True)
    out = jnp.concatenate(outputs, axis=2)
    return out, _Saved(q, k, v, biases, layout, dropout, out, log_sums)


def _backward(normalizer: ScoreNormalizer, saved: _Saved, to_out: Array) -> tuple:
    """Return the gradients of q, k, v and the biases; None for layout and dropout."""
    q, k, v, biases, layout, dropout, out, log_sums = saved
    first = layout.first_row
    # Of softmax: sum_k weight_k d(weight_k) = <out, d(out)>, dropout included.
    inner = None if normalizer.norm else jnp.sum((out * to_out).astype(jnp.float32), axis=-1)
    to_q: list[Array] = []  # of each band
    to_biases: list[Array] = []  # of each block
    to_k, to_v = (jnp.zeros(x.shape, jnp.float32) for x in (k, v))

    def run_block(
        inputs: BlockInputs,
        rows: _RowInputs,
        number: Array | int,
        to_shared_bias: Array | None = None,
    ) -> tuple[Array | None, tuple[Array, Array, Array, Array | None]]:
        """Return (gradient of a bias that users share, gradients of q, k, v and of other biases)."""

        def run(to_shared_bias: Array | None, given: tuple[BlockInputs, _RowInputs]) -> tuple:
            inputs, rows = given
            factors = None if dropout is None else _dropout_factors(dropout, number, inputs)
            *gradients, to_scores = _block_gradients(
                normalizer, inputs, rows, layout.num_slots, factors
            )
            if inputs.bias is None:
                return None, (*gradients, None)
            to_bias = jnp.sum(to_scores, axis=1)
            if to_shared_bias is None:
                return None, (*gradients, to_bias)
            shared = to_shared_bias + jnp.sum(to_bias, axis=0, keepdims=True)
            return shared, (*gradients, None)

        return scan_users(run, to_shared_bias, (inputs, rows), inputs)

    for band, sums in zip(group_blocks(layout, loops=biases is None), log_sums, strict=True):
        cut = slice(band.rows.start - first, band.rows.stop - first)
        softmax = None
        if sums is not None and inner is not None:
            softmax = _SoftmaxSums(sums, inner[:, :, cut])
        rows = _RowInputs(to_out[:, :, cut], softmax)
        if len(band.numbers) == 1:
            (number,) = band.numbers
            to_shared = None
            if biases is not None and biases[number].shape[0] == 1:
                to_shared = jnp.zeros(biases[number].shape, jnp.float32)
            inputs = select_block(number, q, k, v, biases, layout, dropout)
            to_shared, (dq, dk, dv, to_bias) = run_block(inputs, rows, number, to_shared)
            block = layout.blocks[number]
            to_k = add_to_keys(to_k, jnp.swapaxes(dk, 2, 3), block, layout.num_slots)
            to_v = add_to_keys(to_v, jnp.swapaxes(dv, 2, 3), block, layout.num_slots)
            if biases is not None:
                of_block = to_bias if to_shared is None else to_shared
                to_biases.append(jnp.asarray(of_block, biases[number].dtype))
        else:

            def step(
                totals: tuple[Array, Array],
                given: tuple[LoopedBlock, _RowInputs],
                band: Band = band,
            ) -> tuple[tuple[Array, Array], Array]:
                block, rows = given
                inputs = select_looped_block(band, block, k, v, layout, dropout)
                _, (dq, dk, dv, _) = run_block(inputs, rows, block.number)

                def add(total: Array, part: Array) -> Array:
                    part = jnp.swapaxes(part, 2, 3)
                    return band.add_to_keys(total, part, block.start, layout.num_slots)

                return (add(totals[0], dk), add(totals[1], dv)), dq

            looped = (stack_blocks(band, q, layout), jax.tree.map(band.split, rows))
            (to_k, to_v), dq = jax.lax.scan(step, (to_k, to_v), looped)
            dq = band.join(dq)
        to_q.append(dq)
    return (
        jnp.concatenate(to_q, axis=2),
        to_k.astype(k.dtype),
        to_v.astype(v.dtype),
        None if biases is None else tuple(to_biases),
        None,
        None,
    )


_attend.defvjp(_forward, _backward)


def _block_gradients(
    normalizer: ScoreNormalizer,
    inputs: BlockInputs,
    rows: _RowInputs,
    num_slots: int,
    factors: Array | None,  # b H rows keys
) -> tuple[Array, Array, Array, Array]:
    """Recompute the weights of a block, and return the gradients of its q, k, v and scores.

    Those of k and v are float32 and transposed, [b, H, d, keys].
    """
    q, k, v = inputs.q, inputs.k, inputs.v
    scores, mask = _scores(inputs, num_slots)
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_weights = dot("bhqd,bhkd->bhqk", rows.to_out, v)
    if rows.softmax is None:
        gate = jax.nn.sigmoid(scores)
        weights = jnp.where(mask, scores * gate / normalizer.norm, 0)
        slope = gate * (1 + scores * (1 - gate)) / normalizer.norm
        to_scores = jnp.where(mask, slope * to_weights, 0)
    else:
        weights = jnp.where(mask, jnp.exp(scores - rows.softmax.log_sums[..., None]), 0)
        if factors is not None:
            to_weights = to_weights * factors
        to_scores = weights * (to_weights - rows.softmax.inner[..., None])
        if factors is not None:
            weights = weights * factors
    d = to_scores.astype(q.dtype)
    return (
        dot("bhqk,bhkd->bhqd", d, k).astype(q.dtype),
        # The rows are contracted with the small side in front: five times as fast on a CPU.
        dot("bhdq,bhqk->bhdk", jnp.swapaxes(q, 2, 3), d),
        dot("bhdq,bhqk->bhdk", jnp.swapaxes(rows.to_out, 2, 3), weights.astype(v.dtype)),
        to_scores,
    )


def _scores(inputs: BlockInputs, num_slots: int) -> tuple[Array, Array]:
    """Return (float32 scores [b, H, rows, keys], their mask)."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", inputs.q, inputs.k, preferred_element_type=jnp.float32)
    if inputs.bias is not None:
        scores = scores + inputs.bias[:, None].astype(jnp.float32)
    return scores, mask_of(inputs.block, num_slots)[:, None]


def _weights(normalizer: ScoreNormalizer, scores: Array, mask: Array) -> tuple[Array, Array | None]:
    """Return (weights, log of the sum of exp(scores) [b, H, rows] for softmax)."""
    if normalizer.norm:
        return normalizer(scores, mask), None
    top = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=-1e30)
    weights = jnp.where(mask, jnp.exp(scores - top), 0)
    total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
    return weights / total, (top + jnp.log(total))[..., 0]


def _dropout_factors(dropout: AttentionDropout, number: Array | int, inputs: BlockInputs) -> Array:
    """Return `AttentionDropout.factors` of the users of a block."""
    shape = (*inputs.q.shape[1:3], inputs.k.shape[2])
    return dropout.replace(rows=inputs.numbers).factors(number, shape)
