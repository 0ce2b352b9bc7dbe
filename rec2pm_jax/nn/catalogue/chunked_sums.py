"""Sums of losses over many rows, with their gradients, a chunk of rows at a time.

A loss over the catalogue makes [positions, candidates] numbers that are needed once. Here they exist
for one chunk of positions, in the cache. Positions without weight are not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.catalogue.own_items import own_places
from rec2pm_jax.typing import PADDING_ID, Array, OwnItems, PyTree

BLOCK_ROWS = 512  # positions of a block of `log_partition_sum`
MIN_BLOCK_ITEMS = 128

# (shared, rows, context, row_context) -> float32 [chunk], see `weighted_sum`
RowLoss = Callable[[Any, Any, Any, Any], Array]
Carry = TypeVar("Carry")


def weighted_sum(
    loss: RowLoss,
    shared: PyTree,
    rows: PyTree,
    context: PyTree,
    row_context: PyTree,
    weights: Array,
    chunk: int,
) -> Array:
    """Return sum_t weights[t] * loss(shared, rows[t], context, row_context[t]).

    The gradient of each chunk is taken right after its loss, while its numbers are in the cache, and
    kept. The gradient of a sum is known except for one factor, so nothing is computed twice.

    Args:
      loss: must not close over traced arrays.
      shared: float arrays that every row uses (item embeddings); gets a gradient.
      rows: float arrays [T, ...]; gets a gradient.
      context: arrays that every row uses, without gradient (ids of negatives).
      row_context: arrays [T, ...] without gradient (targets).
      weights: float32 [T], without gradient. Chunks of rows with weight 0 are skipped.
      chunk: rows at a time.

    Returns:
      float32 scalar.

    >>> def square(shared, rows, context, row_context):
    ...     return shared * rows**2
    >>> x, weights = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 1.0])
    >>> total = lambda x: weighted_sum(square, jnp.float32(2), x, (), (), weights, chunk=1)
    >>> float(total(x)), jax.grad(total)(x).tolist()
    (20.0, [4.0, 0.0, 12.0])
    """
    chunk = min(chunk, len(weights))
    if chunk < len(weights):
        (rows, row_context), weights = _sort_by_use((rows, row_context), weights, chunk)
    return _sum(loss, chunk, shared, rows, context, row_context, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(
    loss: RowLoss,
    chunk: int,
    shared: PyTree,
    rows: PyTree,
    context: PyTree,
    row_context: PyTree,
    weights: Array,
) -> Array:
    def add(start: Array | int, total: Array) -> Array:
        part, part_context, w = _slice((rows, row_context, weights), start, chunk)
        return total + jnp.sum(loss(shared, part, context, part_context) * w)

    return _over_chunks(add, jnp.float32(0), weights, chunk)


def _sum_and_gradients(
    loss: RowLoss,
    chunk: int,
    shared: PyTree,
    rows: PyTree,
    context: PyTree,
    row_context: PyTree,
    weights: Array,
) -> tuple[Array, list[PyTree]]:
    def add(
        start: Array | int, carry: tuple[Array, PyTree, PyTree]
    ) -> tuple[Array, PyTree, PyTree]:
        total, to_shared, to_rows = carry
        part, part_context, w = _slice((rows, row_context, weights), start, chunk)

        def objective(shared: PyTree, part: PyTree) -> Array:
            return jnp.sum(loss(shared, part, context, part_context) * w)

        value, (part_to_shared, to_part) = jax.value_and_grad(objective, (0, 1))(shared, part)
        to_shared = jax.tree.map(jnp.add, to_shared, part_to_shared)
        to_rows = jax.tree.map(
            lambda all_rows, new: jax.lax.dynamic_update_slice_in_dim(all_rows, new, start, 0),
            to_rows,
            to_part,
        )
        return total + value, to_shared, to_rows

    zeros = jax.tree.map(jnp.zeros_like, (shared, rows))
    total, *gradients = _over_chunks(add, (jnp.float32(0), *zeros), weights, chunk)
    return total, gradients


def _scale_gradients(
    loss: RowLoss, chunk: int, gradients: list[PyTree], cotangent: Array
) -> tuple[PyTree, PyTree, None, None, None]:
    to_shared, to_rows = jax.tree.map(lambda g: g * cotangent, gradients)
    return to_shared, to_rows, None, None, None


_sum.defvjp(_sum_and_gradients, _scale_gradients)


def _slice(tree: PyTree, start: Array | int, chunk: int) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk), tree)


def _over_chunks(
    add: Callable[[Any, Carry], Carry], carry: Carry, weights: Array, chunk: int
) -> Carry:
    """Apply `add(start, carry)` to the chunks that hold a row with weight, or to the only chunk."""
    if chunk >= len(weights):
        return add(0, carry)
    used = jnp.sum(weights != 0)
    chunks = (used + chunk - 1) // chunk
    return jax.lax.fori_loop(0, chunks, lambda i, carry: add(i * chunk, carry), carry)


def log_partition_sum(
    vectors: Array, items: Array, weights: Array, chunk_bytes: int, own: OwnItems | None = None
) -> Array:
    """Return sum_t weights[t] * logsumexp(vectors[t] @ items.T + addends), for any catalogue.

    Logits exist for one block of positions by items, and the backward pass recomputes them. Memory,
    besides the arguments and their gradients, does not grow with positions or items.

    Args:
      vectors: float32 [T, D].
      items: float32 [V, D].
      weights: float32 [T], without gradient. Blocks of positions with weight 0 are not computed.
      chunk_bytes: approximate size of a block of logits, in bytes.
      own: fields [T, J], addends of items whose ids are those of `items`, from 1 on; None for none.

    Returns:
      float32 scalar.
    """
    rows = min(BLOCK_ROWS, len(vectors))
    columns = min(max(chunk_bytes // (4 * BLOCK_ROWS), MIN_BLOCK_ITEMS), len(items))
    (vectors, own), weights = _sort_by_use((vectors, own), weights, rows)
    ids, addends = (None, None) if own is None else own
    return _partition((rows, columns), vectors, addends, items, ids, weights)


class _Saved(NamedTuple):
    """What the forward pass of `_partition` stores for the backward pass."""

    vectors: Array  # T D
    addends: Array | None  # T J
    items: Array  # V D
    ids: Array | None  # T J
    weights: Array  # T
    log_sums: Array  # T


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _partition(
    block: tuple[int, int],
    vectors: Array,
    addends: Array | None,
    items: Array,
    ids: Array | None,
    weights: Array,
) -> Array:
    return _log_partitions(block, vectors, addends, items, ids, weights)[0]


def _log_partitions(
    block: tuple[int, int],
    vectors: Array,
    addends: Array | None,
    items: Array,
    ids: Array | None,
    weights: Array,
) -> tuple[Array, _Saved]:
    rows, columns = block

    def add_rows(start: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, log_sums = carry
        x, own, w = _slice((vectors, (ids, addends), weights), start, rows)

        def add_items(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            top, total = carry
            logits = _block_logits(x, own, items, i, columns)[0]
            new_top = jnp.maximum(top, jnp.max(logits, axis=1))
            part = jnp.sum(jnp.exp(logits - new_top[:, None]), axis=1)
            return new_top, total * jnp.exp(top - new_top) + part

        nothing = jnp.full(rows, -1e30), jnp.zeros(rows)
        top, denominator = jax.lax.fori_loop(0, _count_blocks(items, columns), add_items, nothing)
        z = top + jnp.log(denominator)
        log_sums = jax.lax.dynamic_update_slice_in_dim(log_sums, z, start, 0)
        return total + jnp.sum(z * w), log_sums

    carry = jnp.float32(0), jnp.zeros(len(vectors))
    total, log_sums = _over_chunks(add_rows, carry, weights, rows)
    return total, _Saved(vectors, addends, items, ids, weights, log_sums)


def _partition_gradients(
    block: tuple[int, int], saved: _Saved, cotangent: Array
) -> tuple[Array, Array | None, Array, None, None]:
    vectors, addends, items, ids, weights, log_sums = saved
    rows, columns = block

    def add_items(i: Array, carry: PyTree) -> PyTree:
        to_rows, to_items = carry

        def add_rows(start: Array | int, carry: PyTree) -> PyTree:
            to_rows, to_part = carry
            read = vectors, (ids, addends), weights, log_sums, to_rows
            x, own, w, z, old = _slice(read, start, rows)
            logits, part, places = _block_logits(x, own, items, i, columns)
            p = jnp.exp(logits - z[:, None]) * (w * cotangent)[:, None]
            to_own = None if places is None else p.at[places].get(mode="fill", fill_value=0)
            new = jax.tree.map(jnp.add, old, (p @ part, to_own))
            to_rows = jax.tree.map(
                lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, start, 0), to_rows, new
            )
            return to_rows, to_part + p.T @ x

        first = _first_item(items, i, columns)
        # The last block overlaps the one before: repeated items are masked and add nothing.
        to_part = jax.lax.dynamic_slice_in_dim(to_items, first, columns)
        to_rows, to_part = _over_chunks(add_rows, (to_rows, to_part), weights, rows)
        return to_rows, jax.lax.dynamic_update_slice_in_dim(to_items, to_part, first, 0)

    zeros = jax.tree.map(jnp.zeros_like, ((vectors, addends), items))
    blocks = _count_blocks(items, columns)
    (to_vectors, to_addends), to_items = jax.lax.fori_loop(0, blocks, add_items, zeros)
    return to_vectors, to_addends, to_items, None, None


_partition.defvjp(_log_partitions, _partition_gradients)


def _count_blocks(items: Array, columns: int) -> int:
    return -(-len(items) // columns)


def _first_item(items: Array, i: Array, columns: int) -> Array:
    return jnp.minimum(i * columns, len(items) - columns)


def _block_logits(
    x: Array, own: tuple[Array | None, Array | None], items: Array, i: Array, columns: int
) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """Return (logits [rows, columns] of block i, its items, the places of own items in it).

    Logits of items that an earlier block holds are -inf.
    """
    first = _first_item(items, i, columns)
    part = jax.lax.dynamic_slice_in_dim(items, first, columns)
    new = first + jnp.arange(columns) >= i * columns
    logits = jnp.where(new, x @ part.T, -jnp.inf)
    ids, addends = own
    if ids is None or addends is None:
        return logits, part, None
    places = own_places(ids - 1 - first, columns, ids != PADDING_ID)
    return logits.at[places].add(addends, mode="drop"), part, places


def _sort_by_use(tree: PyTree, weights: Array, chunk: int) -> tuple[PyTree, Array]:
    """Return (tree, weights) with weighted rows first, padded to whole chunks."""
    order = jnp.argsort(weights == 0, stable=True)
    order = jnp.pad(order, (0, -len(weights) % chunk))
    weights = jnp.where(jnp.arange(len(order)) < len(weights), weights[order], 0)
    return jax.tree.map(lambda x: jnp.asarray(x)[order], tree), weights
