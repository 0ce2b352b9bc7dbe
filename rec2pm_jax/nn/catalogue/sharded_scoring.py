"""Exact ranking over a catalogue whose rows are spread over the devices of a mesh.

Every device scores its own rows, block by block. Only counts, or the k best items of each device,
travel. These functions run inside `jax.shard_map`. Rows are those of `sharded_table`, ids those of the
catalogue.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.catalogue.filters import NO_FILTER, ItemFilter, is_denied, rank_candidates
from rec2pm_jax.nn.catalogue.own_items import add_own, merge_own, own_places, sort_best
from rec2pm_jax.nn.catalogue.row_exchange import all_to_all
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows, rows_to_ids, take_rows
from rec2pm_jax.nn.catalogue.topk import top_k
from rec2pm_jax.typing import PADDING_ID, Array, OwnItems

BLOCK_ROWS = 8192  # rows scored at a time

Transform = Callable[[Array], Array]  # rows [n, D] -> item vectors float32 [n, D], row by row


def sharded_ranks(
    queries: Array,
    targets: Array,
    table: Array,
    num_items: int,
    transform: Transform,
    axis_name: str,
    own: OwnItems | None = None,
    seen: Array | None = None,
) -> Array:
    """Return the pessimistic rank of each target among all items.

    Ranks are those of the whole catalogue on one device, unless a score differs from the target's by
    rounding alone: products of other shapes may round in other ways.

    Args:
      queries: float32 [Q, D], the same on all devices.
      targets: int32 [Q], ids.
      table: this device's rows, packed.
      num_items: items of the catalogue.
      transform: rows of the table -> item vectors.
      axis_name: of the devices.
      own: fields [Q, J], the same on all devices; None for none.
      seen: int32 [Q, X], ids left out of each ranking, 0 for none, the same on all devices. A target
        that is left out comes last.

    Returns:
      int32 [Q]; 0 if a score is not finite.
    """
    dim = queries.shape[1]
    pack = table.shape[1] // dim
    count, total, first = _own_extent(table, dim, axis_name)
    at = ids_to_rows(targets, total) - first
    mine = (at >= 0) & (at < count)
    rows = transform(take_rows(table, jnp.clip(at, 0, count - 1), dim))
    # The same product as that of a block, so that rounding separates no equal items.
    score = jax.lax.psum(jnp.where(mine, jnp.diagonal(queries @ rows.T), 0), axis_name)
    own_rows = seen_rows = None
    if own is not None:
        to_target = own._replace(ids=(own.ids == targets[:, None]).astype(jnp.int32))
        score = add_own(score[:, None], to_target, first=1)[:, 0]
        own_rows = ids_to_rows(own.ids, total) - first
    if seen is not None:
        seen_rows = ids_to_rows(seen, total) - first
    block = min(BLOCK_ROWS, count)

    def add(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        ahead, finite = carry
        # The last block overlaps the one before: repeated rows do not count.
        start = jnp.minimum(i * block, count - block)
        index = start + jnp.arange(block, dtype=jnp.int32)
        ids = rows_to_ids(first + index, total)
        real = (index >= i * block) & (ids > 0) & (ids <= num_items)
        wide = jax.lax.dynamic_slice_in_dim(table, start // pack, block // pack)
        scores = queries @ transform(wide.reshape(block, dim)).T
        if own is not None and own_rows is not None:
            places = own_places(own_rows - start, block, own.ids != PADDING_ID)
            scores = scores.at[places].add(own.addends, mode="drop")
        # The target itself counts once, by definition: rounding cannot lose it.
        others = real & (ids != targets[:, None])
        if seen_rows is not None:
            others &= ~is_denied(seen_rows, block, start)
        at_least = jnp.sum(others & (scores >= score[:, None]), axis=1, dtype=jnp.int32)
        return ahead + at_least, finite & jnp.all(jnp.isfinite(scores) | ~real, axis=1)

    start = jnp.zeros(len(queries), jnp.int32), jnp.isfinite(score)
    ahead, finite = jax.lax.fori_loop(0, -(-count // block), add, start)
    bad = jax.lax.psum(1 - finite.astype(jnp.int32), axis_name)
    ranks = 1 + jax.lax.psum(ahead, axis_name)
    if seen is not None:
        ranks = jnp.where(jnp.any(seen == targets[:, None], axis=1), num_items, ranks)
    return jnp.where(bad == 0, ranks, 0)


def sharded_top_k(
    queries: Array,
    table: Array,
    k: int,
    num_items: int,
    transform: Transform,
    axis_name: str,
    rule: ItemFilter = NO_FILTER,
) -> tuple[Array, Array]:
    """Return the k best items of every query, best first.

    The result is that of `top_k` over the whole catalogue, except that of items with equal scores any
    may come first. Devices send each other their k best items, and nothing that grows with the
    catalogue. Arguments are those of `sharded_ranks`; k is at most `num_items`, or the number of
    candidates of `rule`, which is the same on all devices. What scores -inf is no answer.

    Returns:
      (scores float32 [Q, k], ids int32 [Q, k]).
    """
    found = _top_k_of_own_rows(queries, table, k, num_items, transform, axis_name, rule)
    return _merge_top_k(k, *(jax.lax.all_gather(x, axis_name, axis=1, tiled=True) for x in found))


def top_k_per_device(
    queries: Array,
    table: Array,
    k: int,
    num_items: int,
    transform: Transform,
    axis_name: str,
    rule: ItemFilter = NO_FILTER,
) -> tuple[Array, Array]:
    """Return the k best items of this device's queries, best first.

    Arguments and results are those of `sharded_top_k`, but each device has different queries, and
    denied items and candidates of these. All devices gather all queries, and return to each device
    the k best rows that they hold.
    """
    of_queries = queries, rule.denied, rule.candidates
    gathered, denied, candidates = jax.tree.map(
        lambda x: jax.lax.all_gather(x, axis_name, axis=0, tiled=True), of_queries
    )
    rule = rule._replace(denied=denied, candidates=candidates)
    found = _top_k_of_own_rows(gathered, table, k, num_items, transform, axis_name, rule)

    def return_to_sender(x: Array) -> Array:  # [n * Q, k] -> [Q, n * k]
        x = all_to_all(x.reshape(-1, *queries.shape[:1], x.shape[1]), axis_name)
        return jnp.swapaxes(x, 0, 1).reshape(len(queries), -1)

    return _merge_top_k(k, *map(return_to_sender, found))


def best_per_device(
    queries: Array,
    table: Array,
    k: int,
    num_items: int,
    transform: Transform,
    axis_name: str,
    rule: ItemFilter = NO_FILTER,
    own: tuple[OwnItems, Array] | None = None,
) -> tuple[Array, Array]:
    """Return the k best items of this device's queries with their own items, best first.

    Arguments and results are those of `top_k_per_device`, apart from

    Args:
      own: own items of the queries, fields [Q, J], and their vectors float32 [Q, J, D]; None for none.

    Returns:
      (scores float32 [Q, k], ids int32 [Q, k]). Of equal scores the lower id comes first. Which items
      are among the k if several score like the last one depends on where their rows are.
    """
    others = rule._replace(denied=rule.deny(own and own[0]))  # own items come in below
    scores, ids = top_k_per_device(queries, table, k, num_items, transform, axis_name, others)
    if own is None:
        return sort_best(scores, ids, k)
    items, vectors = own
    own_scores = jnp.einsum("qd,qjd->qj", queries, vectors)
    return merge_own(scores, ids, items, rule.drop(own_scores, items.ids), k)


def _top_k_of_own_rows(
    queries: Array,
    table: Array,
    k: int,
    num_items: int,
    transform: Transform,
    axis_name: str,
    rule: ItemFilter,
) -> tuple[Array, Array]:
    """Return the best items [Q, min(k, rows)] among this device's rows: (scores, ids)."""
    dim = queries.shape[1]
    count, total, first = _own_extent(table, dim, axis_name)
    if rule.candidates is not None:
        at = ids_to_rows(rule.candidates, total) - first
        mine = (at >= 0) & (at < count)
        rule = rule._replace(candidates=jnp.where(mine, rule.candidates, PADDING_ID))
        rows = transform(take_rows(table, jnp.clip(at, 0, count - 1), dim))
        return rank_candidates(queries, rows, rule, None, k)

    def allowed(index: Array) -> Array:
        ids = rows_to_ids(first + index, total)
        real = (ids > 0) & (ids <= num_items)
        return real & rule.allows(jnp.where(real, ids, PADDING_ID))

    best, at = top_k(
        queries,
        table,
        min(k, count),
        allowed=allowed,
        transform=transform,
        denied=None if rule.denied is None else ids_to_rows(rule.denied, total) - first,
    )
    return best, rows_to_ids(first + at, total)


def _merge_top_k(k: int, scores: Array, ids: Array) -> tuple[Array, Array]:
    """Return the k best of scored items [Q, candidates]: (scores, ids)."""
    best, at = jax.lax.top_k(scores, k)
    return best, jnp.take_along_axis(ids, at, axis=1)


def _own_extent(table: Array, dim: int, axis_name: str) -> tuple[int, int, Array]:
    """Return (rows of this device, rows of all devices, this device's first row)."""
    count = table.size // dim
    return count, count * jax.lax.axis_size(axis_name), count * jax.lax.axis_index(axis_name)
