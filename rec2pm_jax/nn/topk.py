"""Exact top-k over a large catalogue without its logits.

The catalogue is cut into runs of `RUN` consecutive rows. Of every run only the maximum is kept, and
then the k runs with the largest maxima hold the k best rows: a row outside of them is beaten by the
best row of each of the k. So one pass makes the maxima, block by block, 1 / RUN of the logits, and
a second one looks at k * RUN rows per query. Where all logits together are no more than those of a
block, as for one user, one product makes them and the second pass picks among them. Shapes are static,
nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import export

from rec2pm_jax.nn.item_rows import take_rows
from rec2pm_jax.typing import Array

RUN = 64
BLOCK = (
    4096  # rows whose logits exist at a time: 1 MB for 64 queries, so they stay in a core's cache
)
_QUERIES = 64  # that a block is for: its logits are BLOCK * _QUERIES
_DIRECT = 16  # blocks; a smaller catalogue is sorted as it is


def top_k(
    queries: Array,
    table: Array,
    k: int,
    *,
    first: int = 0,
    allowed: Callable[[Array], Array] | None = None,
    prepare: Callable[[Array], Array] = lambda rows: rows,
    block: int = BLOCK,
) -> tuple[Array, Array]:
    """The k largest dot products of every query with the rows of `table`, largest first.

    Equal to a stable sort of all scores, `prepare(table) @ queries.T`: of equal scores the lower row
    comes first. Both passes make the scores by the same product over at least RUN rows, which on a CPU
    gives the same bits wherever a row stands; where a product rounds by its shape, scores closer than
    rounding may swap.

    Args:
      queries: float32 [Q, W].
      table: [V, W], or packed as in `nn.item_rows`.
      k: rows wanted, 1 <= k <= V - first.
      first: rows before this one do not take part (the padding row); 0 of a packed table.
      allowed: row numbers int32 [n] -> bool [n], false where a row scores -inf; None: all score.
      prepare: rows of the table [n, W] -> float32 [n, W], each row by itself.
      block: rows per step, a multiple of RUN.

    Returns:
      (scores float32 [Q, k], rows int32 [Q, k]).

    Raises:
      ValueError: k is out of range.
    """
    dim = queries.shape[1]
    pack = table.shape[1] // dim
    count = pack * table.shape[0] - first
    if not 1 <= k <= count:
        raise ValueError(f"k={k} must be between 1 and the {count} rows that take part.")

    def scores(rows: Array, index: Array) -> Array:
        """Rows [n, W] of numbers `index` -> [n, Q]."""
        made = prepare(rows) @ queries.T
        return made if allowed is None else jnp.where(allowed(index)[:, None], made, -jnp.inf)

    def all_scores() -> Array:
        """[Q, count]: a table without its first row would be a copy, so it is left out here."""
        index = jnp.arange(first + count, dtype=jnp.int32)
        return scores(table.reshape(-1, dim), index)[first:].T

    def taken(index: Array) -> Array:
        return table[index] if pack == 1 else take_rows(table, index, dim)

    if count <= max(_DIRECT * block, 2 * k * RUN):
        best, rows = jax.lax.top_k(all_scores(), k)
        return best, rows + first
    number = queries.shape[0]  # of an exported program it is not known
    if not export.is_symbolic_dim(number) and number * count <= _QUERIES * block:
        best, rows = _among(all_scores(), k)
        return best, rows + first

    def maxima(rows: Array, index: Array) -> Array:
        """[n, W] -> [n / RUN, Q]."""
        return scores(rows, index).reshape(-1, RUN, queries.shape[0]).max(axis=1)

    def step(carry: None, start: Array) -> tuple[None, Array]:
        index = start + jnp.arange(block, dtype=jnp.int32)
        rows = jax.lax.dynamic_slice_in_dim(table, start // pack, block // pack)
        return carry, maxima(rows.reshape(block, dim), index)

    blocks = count // block
    _, runs = jax.lax.scan(step, None, first + block * jnp.arange(blocks, dtype=jnp.int32))
    runs = runs.reshape(-1, queries.shape[0])
    rest = count - blocks * block
    if rest:  # fewer rows than a block, filled up to whole runs by repeating the last
        index = jnp.minimum(jnp.arange(-(-rest // RUN) * RUN, dtype=jnp.int32), rest - 1)
        index = first + count - rest + index
        runs = jnp.concatenate([runs, maxima(taken(index), index)])

    chosen = _best_runs(runs.T, k)

    def refine(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        query, runs = inputs
        rows = first + (runs[:, None] * RUN + jnp.arange(RUN, dtype=jnp.int32)).reshape(-1)
        real = rows < first + count
        inside = jnp.where(real, rows, first)
        own = scores(taken(inside), inside)[:, query]
        best, at = jax.lax.top_k(jnp.where(real, own, -jnp.inf), k)
        return best, rows[at]

    return jax.lax.map(refine, (jnp.arange(queries.shape[0]), chosen))


def _best_runs(maxima: Array, k: int) -> Array:
    """The k runs with the largest maxima, [Q, runs] -> int32 [Q, k], in the order of their rows."""
    chosen = jax.lax.top_k(maxima, k)[1]  # the lower run first where maxima are equal
    return jnp.sort(chosen, axis=1)  # so that rows are in order again, and ties with them


def _among(logits: Array, k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k` of logits [Q, V] by runs: faster than looking for k in all of them."""
    queries, count = logits.shape
    filled = -(-count // RUN) * RUN
    logits = jnp.pad(logits, ((0, 0), (0, filled - count)), constant_values=-jnp.inf)
    runs = logits.reshape(queries, -1, RUN)
    chosen = _best_runs(runs.max(axis=2), k)
    inside = jnp.take_along_axis(runs, chosen[:, :, None], axis=1).reshape(queries, -1)
    best, at = jax.lax.top_k(inside, k)
    return best, jnp.take_along_axis(chosen, at // RUN, axis=1) * RUN + at % RUN
