"""Exact top-k over a large catalogue without holding its logits.

The catalogue is cut into runs of `RUN_ROWS` consecutive rows. A first pass keeps the maximum of every
run, block by block, which is 1 / RUN_ROWS of the logits. The k runs with the largest maxima hold the k
best rows: each of these runs has a row that beats any row outside of them. A second pass scores their
k * RUN_ROWS rows per query. If the logits of all queries fit into one block, as for one user, a single
product makes them, and the second pass selects among them. Shapes are static; nothing is approximate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import export

from rec2pm_jax.nn.catalogue.filters import is_denied
from rec2pm_jax.nn.catalogue.sharded_table import take_rows
from rec2pm_jax.typing import Array

RUN_ROWS = 64
BLOCK_ROWS = 4096  # rows scored at a time: 1 MB for 64 queries, so they stay in a core's cache
_BLOCK_QUERIES = 64  # queries that a block is sized for
_SORTED_BLOCKS = 16  # a smaller catalogue is sorted as it is
_TOGETHER = 8  # queries that the second pass scores at once: a CPU rounds as with more of them


def top_k(
    queries: Array,
    table: Array,
    k: int,
    *,
    first: int = 0,
    allowed: Callable[[Array], Array] | None = None,
    transform: Callable[[Array], Array] = lambda rows: rows,
    block: int = BLOCK_ROWS,
    denied: Array | None = None,
) -> tuple[Array, Array]:
    """Return the k largest dot products of every query with the rows of `table`, largest first.

    The result equals a stable sort of all scores, `queries @ transform(table).T`: of equal scores the
    lower row comes first. Both passes compute scores by the same product over at least RUN_ROWS rows.
    On a CPU that gives the same bits wherever a row is. On a machine where a product rounds by its
    shape, scores closer than rounding may swap.

    Args:
      queries: float32 [Q, D].
      table: [V, D], or packed as in `sharded_table`.
      k: rows wanted, 1 <= k <= V - first.
      first: rows before this one do not take part (the padding row); 0 for a packed table.
      allowed: row numbers int32 [n] -> bool [n], false where a row scores -inf. None: all score.
      transform: rows of the table [n, D] -> float32 [n, D], row by row.
      block: rows per step, a multiple of RUN_ROWS.
      denied: int32 [Q, X], rows that score -inf for one query; rows out of range are ignored. None:
        no row is denied.

    Returns:
      (scores float32 [Q, k], rows int32 [Q, k]).

    Raises:
      ValueError: k is out of range.

    >>> table = jnp.array([[0.0], [3.0], [1.0], [2.0]])
    >>> scores, rows = top_k(jnp.ones((1, 1)), table, k=2)
    >>> scores.tolist(), rows.tolist()
    ([[3.0, 2.0]], [[1, 3]])
    """
    dim = queries.shape[1]
    pack = table.shape[1] // dim
    count = pack * table.shape[0] - first
    number = queries.shape[0]  # unknown in an exported program
    if not 1 <= k <= count:
        raise ValueError(f"k={k} must be between 1 and the {count} rows that take part.")

    def score(queries: Array, rows: Array) -> Array:
        """Score rows [n, D]: [Q, n]."""
        return queries @ transform(rows).T

    def left_out(index: Array) -> Array | None:
        """Return which consecutive rows `index` [n] score -inf: bool [n, 1 or Q], None for none."""
        masks = [] if allowed is None else [~allowed(index)[:, None]]
        if denied is not None:
            masks.append(is_denied(denied, len(index), index[0]).T)
        return functools.reduce(jnp.logical_or, masks) if masks else None

    def score_all() -> Array:
        """Score all rows: [Q, count]. A table without its first rows would be a copy."""
        index = jnp.arange(first + count, dtype=jnp.int32)
        scores, out = score(queries, table.reshape(-1, dim)), left_out(index)
        return (scores if out is None else jnp.where(out.T, -jnp.inf, scores))[:, first:]

    def take(index: Array) -> Array:
        return table[index] if pack == 1 else take_rows(table, index, dim)

    if count <= max(_SORTED_BLOCKS * block, 2 * k * RUN_ROWS):
        best, rows = jax.lax.top_k(score_all(), k)
        return best, rows + first
    if not export.is_symbolic_dim(number) and number * count <= _BLOCK_QUERIES * block:
        best, rows = _top_k_by_runs(score_all(), k)
        return best, rows + first

    def run_maxima(rows: Array, index: Array) -> Array:
        """Reduce the scores of rows [n, D] to those of runs: [n / RUN_ROWS, Q]."""
        # Transposed before the mask, so that the product is made that way round.
        scores, out = score(queries, rows).T, left_out(index)
        scores = scores if out is None else jnp.where(out, -jnp.inf, scores)
        return scores.reshape(-1, RUN_ROWS, number).max(axis=1)

    def step(carry: None, start: Array) -> tuple[None, Array]:
        index = start + jnp.arange(block, dtype=jnp.int32)
        rows = jax.lax.dynamic_slice_in_dim(table, start // pack, block // pack)
        return carry, run_maxima(rows.reshape(block, dim), index)

    blocks = count // block
    _, maxima = jax.lax.scan(step, None, first + block * jnp.arange(blocks, dtype=jnp.int32))
    maxima = maxima.reshape(-1, queries.shape[0])
    rest = count - blocks * block
    if rest:  # fewer rows than a block, padded to whole runs by repeating the last
        index = jnp.minimum(jnp.arange(-(-rest // RUN_ROWS) * RUN_ROWS, dtype=jnp.int32), rest - 1)
        index = first + count - rest + index
        maxima = jnp.concatenate([maxima, run_maxima(take(index), index)])

    chosen = _select_runs(maxima.T, k)
    together = _TOGETHER if export.is_symbolic_dim(number) else min(_TOGETHER, number)
    others = jnp.arange(together, dtype=jnp.int32)

    def refine(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        """Select the best rows of one query among its runs."""
        query, runs = inputs
        offset = jnp.arange(RUN_ROWS, dtype=jnp.int32)
        rows = first + (runs[:, None] * RUN_ROWS + offset).reshape(-1)
        real = rows < first + count
        inside = jnp.where(real, rows, first)
        scores = score(queries[(query + others) % number], take(inside))[0]
        if allowed is not None:
            real &= allowed(inside)
        if denied is not None:
            real &= ~jnp.isin(rows, denied[query])
        best, at = jax.lax.top_k(jnp.where(real, scores, -jnp.inf), k)
        return best, rows[at]

    return jax.lax.map(refine, (jnp.arange(number, dtype=jnp.int32), chosen))


def _select_runs(maxima: Array, k: int) -> Array:
    """Return the k runs with the largest maxima, [Q, runs] -> int32 [Q, k], in the order of rows."""
    chosen = jax.lax.top_k(maxima, k)[1]  # the lower run first where maxima are equal
    return jnp.sort(chosen, axis=1)  # so that rows are in order again, and ties with them


def _top_k_by_runs(logits: Array, k: int) -> tuple[Array, Array]:
    """Compute `jax.lax.top_k` of logits [Q, V] by runs, which is faster than sorting all of them."""
    queries, count = logits.shape
    padded = -(-count // RUN_ROWS) * RUN_ROWS
    logits = jnp.pad(logits, ((0, 0), (0, padded - count)), constant_values=-jnp.inf)
    runs = logits.reshape(queries, -1, RUN_ROWS)
    chosen = _select_runs(runs.max(axis=2), k)
    inside = jnp.take_along_axis(runs, chosen[:, :, None], axis=1).reshape(queries, -1)
    best, at = jax.lax.top_k(inside, k)
    run = jnp.take_along_axis(chosen, at // RUN_ROWS, axis=1)
    return best, run * RUN_ROWS + at % RUN_ROWS
