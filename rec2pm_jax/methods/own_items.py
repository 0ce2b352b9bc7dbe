"""What a user's own items score beside the dot product: the repeat head and the exact memory.

Embeddings generalise: they cannot say "this very product, again" or "not twice in one basket". Here an
item i that the user already has gets an addend, which depends on when and how often it occurred. With
y the vector that scores the catalogue, u_i the item's unit vector, and g a bucket of elapsed time,

    every own item (Q y) . u_i
    repeat head    + sum over its raw events of s(g), from the event to the query time
    exact memory   + a[log2 weight] + b[log2 (total weight / weight)] + s(g), from its last event

    s(g) = w[g] + W[g] . u_i

`Q y` is what the reader expects among the user's own items, `w` says when items return, and `W` how
items differ in that (milk is bought weekly, shampoo is not). Repeat head and exact memory have separate
w and W. All weights start at 0. The idea is that of repeat and copy mechanisms (RepeatNet, Ren et al.
2019). docs/methods.md has the evidence.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from rec2pm_jax.methods.exact_memory import total_weight
from rec2pm_jax.methods.windows import Window
from rec2pm_jax.nn.catalogue.own_items import is_first
from rec2pm_jax.nn.gaps import GAPS, MINUTE, WEIGHTS, gap_buckets, weight_buckets
from rec2pm_jax.typing import PADDING_ID, Array, OwnItems, State

GAIN = 5.0  # logits per unit of a weight: weights of these tables get few gradients
ItemVectors = Callable[[Array], Array]


class GapScores(nn.Module):
    """s(g) above: what an item scores that occurred some time ago.

    Attributes:
      dim: D.
    """

    dim: int

    def setup(self) -> None:
        zeros = nn.initializers.zeros_init()
        # The second row is for rows that know their query time.
        self.gap = self.param("gap", zeros, (2, GAPS))
        self.item_gap = self.param("item_gap", zeros, (GAPS, self.dim))

    def __call__(self, gaps: Array, known: Array, items: Array) -> Array:
        """Return the scores, [B, n, J].

        Args:
          gaps: int32 [B, n, J], bucket of the time from each item to the query time of each row.
          known: int32 [B, n], 1 where the query time is known.
          items: float32 [B, J, D], unit vectors.
        """
        of_item = items @ self.item_gap.T  # B J GAPS
        of_row = jnp.where(known[:, :, None] == 1, self.gap[1], self.gap[0])  # B n GAPS
        # Selections instead of a gather: gathers of single numbers are slow on TPUs, and so are the
        # scatters of their gradients everywhere.
        scores = jnp.zeros(gaps.shape)
        for bucket in range(GAPS):
            score = of_row[:, :, None, bucket] + of_item[:, None, :, bucket]
            scores = scores + jnp.where(gaps == bucket, score, 0)
        return scores


class OwnItemScores(nn.Module):
    """The weights of the addends.

    Attributes:
      repeat: whether there is a repeat head.
      entries: E, entries of the exact memory; 0 for none.
      segment: S.
      use_times: whether elapsed times are counted in minutes, or in events.
      dim: D.
    """

    repeat: bool
    entries: int
    segment: int
    use_times: bool
    dim: int

    def setup(self) -> None:
        zeros = nn.initializers.zeros_init()
        if self.repeat:
            self.raw = GapScores(self.dim)
        if self.entries:
            self.exact = GapScores(self.dim)
            self.weight = self.param("weight", zeros, (WEIGHTS,))
            self.share = self.param("share", zeros, (WEIGHTS,))
        self.query = self.param("query", zeros, (self.dim, self.dim))

    def __call__(
        self, state: State, window: Window, rows: Array, vectors: Array, table: ItemVectors
    ) -> OwnItems:
        """Return the own items of users and their addends at some rows.

        Args:
          state: of B users.
          window: N raw events.
          rows: int32 [1 or B, n], which event rows.
          vectors: float32 [B, n, D], what scores the catalogue after these events.
          table: int32 ids -> their unit vectors, float32 [..., D].

        Returns:
          Ids [B, E + N], addends [B, n, E + N]; an event after the row has the addend 0.
        """
        users = window.lengths.shape[0]
        rows = jnp.broadcast_to(rows, (users, rows.shape[1]))
        known = jnp.ones_like(rows)
        row_times = None
        if self.use_times:
            assert window.known is not None and window.row_times is not None, "no times"
            known = jnp.take_along_axis(window.known, rows, axis=1).astype(jnp.int32)
            row_times = jnp.take_along_axis(window.row_times, rows, axis=1)
        archived, raw = state.exact.items[:, : self.entries], window.events.ids
        ids = jnp.concatenate([archived, raw] if self.repeat else [archived], axis=1)
        items = table(ids)
        once = jnp.where(is_first(ids)[..., None], items, 0)
        addends = jnp.einsum("bnd,bjd->bnj", vectors @ self.query, once)
        seen, parts = [jnp.ones((*rows.shape, self.entries), bool)], []
        if self.entries:
            gaps, fixed = self._archived(state, rows, row_times)
            parts.append(fixed[:, None] + self.exact(gaps, known, items[:, : self.entries]))
        if self.repeat:
            place = jnp.arange(window.size, dtype=jnp.int32)
            seen.append(jnp.broadcast_to(place <= rows[:, :, None], (*rows.shape, window.size)))
            gaps = self._raw_gaps(window, rows, row_times)
            parts.append(self.raw(gaps, known, items[:, self.entries :]))
        addends = GAIN * (addends + jnp.concatenate(parts, axis=2))
        counts = jnp.concatenate(seen, axis=2) & (ids != PADDING_ID)[:, None]
        return OwnItems(ids, jnp.where(counts, addends, 0))

    def _archived(self, state: State, rows: Array, row_times: Array | None) -> tuple[Array, Array]:
        """Return (buckets of gaps [B, n, E], what weights score [B, E]) of the exact memory."""
        found = state.exact
        now = state.segments[:, None] * self.segment + rows + 1
        if row_times is not None:
            now = row_times // MINUTE
        total = total_weight(state.segments, self.segment)[:, None]
        share = weight_buckets(total // jnp.maximum(found.weights, 1))
        scores = self.weight[weight_buckets(found.weights)] + self.share[share]
        return gap_buckets(now[:, :, None] - found.last[:, None, :], unit=1), scores

    def _raw_gaps(self, window: Window, rows: Array, row_times: Array | None) -> Array:
        """Return the buckets of the gaps from raw events to rows: [B, n, N]."""
        if row_times is None:
            place = jnp.arange(window.size, dtype=jnp.int32)
            return gap_buckets(rows[:, :, None] + 1 - place, unit=1)
        assert window.events.times is not None, "no times"
        return gap_buckets(row_times[:, :, None] - window.events.times[:, None, :])
