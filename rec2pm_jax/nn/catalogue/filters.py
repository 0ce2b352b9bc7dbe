"""Which items a query may get: one rule that acts inside every ranking of the catalogue.

A filter changes no score. An item that is left out scores -inf, so it comes after all others, and a
caller drops what scores -inf.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.catalogue.own_items import addend_of, own_places, sort_best
from rec2pm_jax.typing import PADDING_ID, Array, OwnItems


class ItemFilter(NamedTuple):
    """Which items queries may get; a field that is None leaves nothing out.

    Attributes:
      denied: int32 [Q, X], ids that one query must not get, 0 for none.
      blocked: bool [V], true for items that no query may get.
      candidates: int32 [Q, C], distinct ids, the only items that one query may get; 0 for none.
    """

    denied: Array | None = None  # Q X
    blocked: Array | None = None  # V
    candidates: Array | None = None  # Q C

    @property
    def leaves_out(self) -> bool:
        """Whether the filter may leave out an item."""
        return any(field is not None for field in self)

    def allows(self, ids: Array) -> Array:
        """Return whether queries may get items, int32 [n] -> bool [n], but for `denied`."""
        return jnp.ones(ids.shape, bool) if self.blocked is None else ~self.blocked[ids]

    def deny(self, own: OwnItems | None) -> Array | None:
        """Return the denied items and the own items: int32 [Q, n], or None if there are none."""
        lists = [ids for ids in (self.denied, None if own is None else own.ids) if ids is not None]
        return jnp.concatenate(lists, axis=1) if lists else None

    def drop(self, scores: Array, ids: Array) -> Array:
        """Return scores with -inf where an item is left out.

        Args:
          scores: float32 [Q, n].
          ids: int32 [Q, n], the items that have these scores; 0 for none.

        >>> rule = ItemFilter(denied=jnp.array([[7, 0]]))
        >>> rule.drop(jnp.ones((1, 3)), jnp.array([[5, 7, 0]])).tolist()
        [[1.0, -inf, -inf]]
        """
        out = ids == PADDING_ID
        if self.denied is not None:
            out |= jnp.any(ids[:, :, None] == self.denied[:, None, :], axis=2)
        if self.candidates is not None:
            out |= ~jnp.any(ids[:, :, None] == self.candidates[:, None, :], axis=2)
        out |= ~self.allows(ids)
        return jnp.where(out, -jnp.inf, scores)


NO_FILTER = ItemFilter()


def is_denied(denied: Array, count: int, first: Array | int = 0) -> Array:
    """Return which of `count` consecutive items are denied: bool [Q, count].

    Args:
      denied: int32 [Q, X], numbers of items; those in no column are ignored.
      count: columns.
      first: number of the first column.

    >>> is_denied(jnp.array([[5, 9]]), count=3, first=4).tolist()
    [[False, True, False]]
    """
    columns = denied - first
    queries, places = own_places(columns, count, jnp.ones_like(columns, bool))
    # Columns first, as products with a table of items lie in memory on a CPU.
    by_item = jnp.zeros((count, denied.shape[0]), bool).at[places, queries].set(True, mode="drop")
    return by_item.T


def rank_candidates(
    queries: Array, rows: Array, rule: ItemFilter, own: OwnItems | None, k: int
) -> tuple[Array, Array]:
    """Return the k best candidates of each query, best first; of equal scores the lower id first.

    Args:
      queries: float32 [Q, D].
      rows: float32 [Q, C, D], vectors of `rule.candidates`.
      rule: with candidates.
      own: own items of the queries, fields [Q, J].
      k: at most C.

    Returns:
      (scores float32 [Q, k], ids int32 [Q, k]); -inf where fewer are left.
    """
    assert rule.candidates is not None, "no candidates"
    scores = jnp.einsum("qd,qcd->qc", queries, rows)
    if own is not None:
        one_row = jax.tree.map(lambda field: field[:, None], own)
        scores = scores + addend_of(one_row, rule.candidates)
    candidates = rule.candidates
    scores = rule._replace(candidates=None).drop(scores, candidates)  # they are all candidates
    return sort_best(scores, candidates, k)
