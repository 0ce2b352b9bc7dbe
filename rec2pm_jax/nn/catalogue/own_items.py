"""Scores of a user's own items: a sparse addition to the dot products with the whole catalogue.

Every function costs the same for any catalogue. An item may occur more than once among `OwnItems`; its
addends add up.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rec2pm_jax.typing import PADDING_ID, Array, OwnItems


def add_own(logits: Array, own: OwnItems | None, first: Array | int = 0) -> Array:
    """Add the addends to logits of consecutive items.

    Args:
      logits: float32 [Q, V].
      own: fields [Q, J], or None.
      first: id of the first column; own items in no column are left out.

    Returns:
      float32 [Q, V].

    >>> own = OwnItems(jnp.array([[2, 0, 2]]), jnp.array([[1.0, 9.0, 0.5]]))
    >>> add_own(jnp.zeros((1, 3)), own, first=1).tolist()
    [[0.0, 1.5, 0.0]]
    """
    if own is None:
        return logits
    places = own_places(own.ids - first, logits.shape[1], own.ids != PADDING_ID)
    return logits.at[places].add(own.addends, mode="drop")


def flatten_own(own: OwnItems) -> OwnItems:
    """Return own items [Q, J] with one row per row of addends [..., J]."""
    return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), own_per_row(own))


def own_places(columns: Array, count: int, real: Array) -> tuple[Array, Array]:
    """Return (rows, columns) of own items in logits [Q, count].

    Args:
      columns: int32 [Q, J]. One that is out of range becomes `count`, which `mode="drop"` leaves out.
      count: columns of the logits.
      real: bool [Q, J], false for padding.
    """
    inside = real & (columns >= 0) & (columns < count)
    rows = jnp.arange(columns.shape[0], dtype=jnp.int32)[:, None]
    return rows, jnp.where(inside, columns, count)


def addend_of(own: OwnItems | None, items: Array) -> Array | float:
    """Return what one item of each query gets: float32 [...], for items int32 [...]."""
    if own is None:
        return 0.0
    return jnp.sum(jnp.where(own.ids == items[..., None], own.addends, 0), axis=-1)


def own_per_row(own: OwnItems) -> OwnItems:
    """Return own items with ids for each row: both fields have the shape of `own.addends`."""
    if own.ids.ndim == own.addends.ndim:
        return own
    return own._replace(ids=jnp.broadcast_to(own.ids[:, None], own.addends.shape))


def repeat_users(of_users: Array, positions: Array) -> Array:
    """Return what belongs to users [B, ...] for each of their positions [T, ...]: [T, ...].

    Args:
      of_users: a user's positions are T / B consecutive ones.
      positions: any array of T rows.

    >>> repeat_users(jnp.array([5, 7]), jnp.zeros(4)).tolist()
    [5, 5, 7, 7]
    """
    return jnp.repeat(of_users, len(positions) // len(of_users), axis=0)


def are_own(items: Array, own_ids: Array, counted: Array) -> Array:
    """Return which items are own items of a position: bool [T, R].

    Args:
      items: int32 [R], the same for all positions, or [T, R]; without padding.
      own_ids: int32 [B, J] without duplicates, of users with T / B consecutive positions each.
      counted: bool [T, J], which of them count at a position.

    >>> counted = jnp.array([[True, True], [True, False]])
    >>> are_own(jnp.array([8, 9]), jnp.array([[4, 8]]), counted).tolist()
    [[True, False], [False, False]]
    """
    users, count = own_ids.shape
    if items.ndim == 1:
        same = (items[:, None] == own_ids[:, None, :]).astype(jnp.float32)  # B R J
        of_user = counted.reshape(users, -1, count).astype(jnp.float32)
        return (jnp.einsum("bnj,brj->bnr", of_user, same) > 0).reshape(-1, len(items))
    # Looked up in sorted own items: comparisons with all of them would be a tenth of a step.
    order = jnp.argsort(own_ids, axis=1)
    ordered = jnp.take_along_axis(own_ids, order, axis=1)
    wanted = items.reshape(users, -1)
    search = functools.partial(jnp.searchsorted, method="scan_unrolled")
    place = jnp.minimum(jax.vmap(search)(ordered, wanted), count - 1)
    found = jnp.take_along_axis(ordered, place, axis=1) == wanted
    which = jnp.take_along_axis(order, place, axis=1).reshape(items.shape)
    return found.reshape(items.shape) & jnp.take_along_axis(counted, which, axis=1)


def is_first(ids: Array) -> Array:
    """Return whether no earlier item of the row is the same: bool [B, J] of ids [B, J].

    >>> is_first(jnp.array([[4, 7, 4]])).tolist()
    [[True, True, False]]
    """
    same = ids[:, :, None] == ids[:, None, :]
    place = jnp.arange(ids.shape[1])
    return ~jnp.any(same & (place[None, :] < place[:, None]), axis=2)


def combine_own(own: OwnItems) -> OwnItems:
    """Return own items without duplicates: the first of equal items gets all their addends.

    Args:
      own: ids [B, J], addends [B, J] or, for several rows that share these items, [B, n, J].

    Returns:
      Fields of the same shapes.

    >>> own = combine_own(OwnItems(jnp.array([[4, 7, 4]]), jnp.array([[1.0, 2.0, 3.0]])))
    >>> own.ids.tolist(), own.addends.tolist()
    ([[4, 7, 0]], [[4.0, 2.0, 0.0]])
    """
    same = own.ids[:, :, None] == own.ids[:, None, :]
    first = is_first(own.ids)
    moved = (same & first[:, None, :]).astype(own.addends.dtype)
    highest = jax.lax.Precision.HIGHEST  # sums, not products
    total = jnp.einsum("b...i,bij->b...j", own.addends, moved, precision=highest)
    return OwnItems(jnp.where(first, own.ids, PADDING_ID), total)


def merge_own(
    scores: Array, ids: Array, own: OwnItems, own_scores: Array, k: int
) -> tuple[Array, Array]:
    """Merge the best items of a catalogue with own items, whose addends it does not know.

    The result is exact if the given items are the k best of those that are no own items, or more.

    Args:
      scores: float32 [Q, n], dot products of the best items of the catalogue.
      ids: int32 [Q, n], these items.
      own: fields [Q, J].
      own_scores: float32 [Q, J], dot products of the own items, -inf for those that are left out.
      k: items wanted, k <= n.

    Returns:
      (scores float32 [Q, k], ids int32 [Q, k]), best first; of equal scores the lower id first.
    """
    own = combine_own(own)
    is_own = jnp.any(ids[:, :, None] == own.ids[:, None, :], axis=2)
    own_scores = jnp.where(own.ids == PADDING_ID, -jnp.inf, own_scores + own.addends)
    scores = jnp.concatenate([jnp.where(is_own, -jnp.inf, scores), own_scores], axis=1)
    ids = jnp.concatenate([ids, own.ids], axis=1)
    return sort_best(scores, ids, k)


def sort_best(scores: Array, ids: Array, k: int) -> tuple[Array, Array]:
    """Return the k best of scored items [Q, n], best first; of equal scores the lower id first.

    >>> sort_best(jnp.array([[1.0, 2.0, 2.0]]), jnp.array([[4, 9, 6]]), k=2)[1].tolist()
    [[6, 9]]
    """
    negated, ids = jax.lax.sort((-scores, ids), dimension=1, num_keys=2)
    return -negated[:, :k], ids[:, :k]
