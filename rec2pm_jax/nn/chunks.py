"""Sums of losses over many rows, with their gradients, a chunk of rows at a time.

A loss over the catalogue makes [positions, candidates] numbers that are needed once. Here they live
for one chunk of positions, in the cache, and positions without weight are not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rec2pm_jax.typing import Array

BLOCK_ROWS = 512  # positions of a block of `log_partition_sum`
MIN_BLOCK_ITEMS = 128

# (shared, rows, context, row_context) -> float32 [chunk]
RowLoss = Callable[[Any, Any, Any, Any], Array]


def weighted_sum(
    loss: RowLoss, shared, rows, context, row_context, weights: Array, chunk: int
) -> Array:
    """sum_t weights[t] * loss(shared, rows[t], context, row_context[t]); float32 scalar.

    The gradient of each chunk is taken right after its loss, while its numbers are still at hand, and
    kept: that of a sum is known but for one factor, so nothing is computed a second time.

    Args:
      loss: must not close over traced arrays.
      shared: pytree of float arrays that every row sees (item embeddings); has a gradient.
      rows: pytree of float arrays [T, ...]; has a gradient.
      context: pytree that every row sees, without gradient (random key).
      row_context: pytree of arrays [T, ...] without gradient (targets).
      weights: float32 [T], without gradient. Chunks of rows with weight 0 are skipped.
      chunk: rows at a time.
    """
    chunk = min(chunk, len(weights))
    if chunk < len(weights):
        (rows, row_context), weights = _used_first((rows, row_context), weights, chunk)
    return _sum(loss, chunk, shared, rows, context, row_context, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(loss, chunk, shared, rows, context, row_context, weights):
    def add(start, total):
        part, part_context, w = _slice((rows, row_context, weights), start, chunk)
        return total + jnp.sum(loss(shared, part, context, part_context) * w)

    return _over_chunks(add, jnp.float32(0), weights, chunk)


def _sum_and_gradients(loss, chunk, shared, rows, context, row_context, weights):
    def add(start, carry):
        total, to_shared, to_rows = carry
        part, part_context, w = _slice((rows, row_context, weights), start, chunk)

        def objective(shared, part):
            return jnp.sum(loss(shared, part, context, part_context) * w)

        value, (g_shared, g_part) = jax.value_and_grad(objective, (0, 1))(shared, part)
        to_shared = jax.tree.map(jnp.add, to_shared, g_shared)
        to_rows = jax.tree.map(
            lambda all_rows, new: jax.lax.dynamic_update_slice_in_dim(all_rows, new, start, 0),
            to_rows,
            g_part,
        )
        return total + value, to_shared, to_rows

    zeros = jax.tree.map(jnp.zeros_like, (shared, rows))
    total, *gradients = _over_chunks(add, (jnp.float32(0), *zeros), weights, chunk)
    return total, gradients


def _scale(loss, chunk, gradients, cotangent):
    to_shared, to_rows = jax.tree.map(lambda g: g * cotangent, gradients)
    return to_shared, to_rows, None, None, None


_sum.defvjp(_sum_and_gradients, _scale)


def _slice(tree, start, chunk: int):
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk), tree)


def _over_chunks(add, carry, weights: Array, chunk: int):
    """Applies `add(start, carry)` to the chunks that hold a row with weight, or to the only one."""
    if chunk >= len(weights):
        return add(0, carry)
    used = jnp.sum(weights != 0)
    chunks = (used + chunk - 1) // chunk
    return jax.lax.fori_loop(0, chunks, lambda i, carry: add(i * chunk, carry), carry)


def log_partition_sum(vectors: Array, items: Array, weights: Array, chunk_bytes: int) -> Array:
    """sum_t weights[t] * logsumexp(vectors[t] @ items.T), for catalogues of any size.

    Logits live for one block of positions by items, and the backward pass makes them again: memory
    beside the arguments and their gradients does not grow with positions or items.

    Args:
      vectors: float32 [T, W]; items: float32 [V, W].
      weights: float32 [T], without gradient. Blocks of positions with weight 0 are not computed.
      chunk_bytes: about the size of a block of logits.
    """
    rows = min(BLOCK_ROWS, len(vectors))
    columns = min(max(chunk_bytes // (4 * BLOCK_ROWS), MIN_BLOCK_ITEMS), len(items))
    vectors, weights = _used_first(vectors, weights, rows)
    return _partition((rows, columns), vectors, items, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _partition(block, vectors, items, weights):
    return _log_partitions(block, vectors, items, weights)[0]


def _log_partitions(block, vectors, items, weights):
    rows, columns = block

    def add_rows(start, carry):
        total, log_z = carry
        x, w = _slice((vectors, weights), start, rows)

        def add_items(i, carry):
            top, total = carry
            logits = _block_logits(x, items, i, columns)[0]
            new_top = jnp.maximum(top, jnp.max(logits, axis=1))
            part = jnp.sum(jnp.exp(logits - new_top[:, None]), axis=1)
            return new_top, total * jnp.exp(top - new_top) + part

        nothing = jnp.full(rows, -1e30), jnp.zeros(rows)
        top, denominator = jax.lax.fori_loop(0, _blocks(items, columns), add_items, nothing)
        z = top + jnp.log(denominator)
        return total + jnp.sum(z * w), jax.lax.dynamic_update_slice_in_dim(log_z, z, start, 0)

    carry = jnp.float32(0), jnp.zeros(len(vectors))
    total, log_z = _over_chunks(add_rows, carry, weights, rows)
    return total, (vectors, items, weights, log_z)


def _partition_gradients(block, saved, cotangent):
    vectors, items, weights, log_z = saved
    rows, columns = block

    def add_items(i, carry):
        to_vectors, to_items = carry

        def add_rows(start, carry):
            to_vectors, to_part = carry
            x, w, z, old = _slice((vectors, weights, log_z, to_vectors), start, rows)
            logits, part = _block_logits(x, items, i, columns)
            p = jnp.exp(logits - z[:, None]) * (w * cotangent)[:, None]
            to_vectors = jax.lax.dynamic_update_slice_in_dim(to_vectors, old + p @ part, start, 0)
            return to_vectors, to_part + p.T @ x

        first = _first(items, i, columns)
        # The last block overlaps the one before: what it repeats is masked and adds nothing.
        to_part = jax.lax.dynamic_slice_in_dim(to_items, first, columns)
        to_vectors, to_part = _over_chunks(add_rows, (to_vectors, to_part), weights, rows)
        return to_vectors, jax.lax.dynamic_update_slice_in_dim(to_items, to_part, first, 0)

    zeros = jnp.zeros_like(vectors), jnp.zeros_like(items)
    to_vectors, to_items = jax.lax.fori_loop(0, _blocks(items, columns), add_items, zeros)
    return to_vectors, to_items, None


_partition.defvjp(_log_partitions, _partition_gradients)


def _blocks(items: Array, columns: int) -> int:
    return -(-len(items) // columns)


def _first(items: Array, i, columns: int):
    return jnp.minimum(i * columns, len(items) - columns)


def _block_logits(x: Array, items: Array, i, columns: int) -> tuple[Array, Array]:
    """Logits [rows, columns] of block i, -inf where an earlier block has the item; and its items."""
    first = _first(items, i, columns)
    part = jax.lax.dynamic_slice_in_dim(items, first, columns)
    new = first + jnp.arange(columns) >= i * columns
    return jnp.where(new, x @ part.T, -jnp.inf), part


def _used_first(tree, weights: Array, chunk: int):
    """Rows that count first, then the others, filled up to whole chunks: (tree, weights)."""
    order = jnp.argsort(weights == 0, stable=True)
    order = jnp.pad(order, (0, -len(weights) % chunk))
    weights = jnp.where(jnp.arange(len(order)) < len(weights), weights[order], 0)
    return jax.tree.map(lambda x: jnp.asarray(x)[order], tree), weights
