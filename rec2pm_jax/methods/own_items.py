"""What a user's own items score beside the dot product: the repeat head and the exact memory.

Embeddings generalise: they cannot say "this very product, again" or "not twice in one basket". Here an
item that the user already has gets an addend, which only depends on when and how often it occurred:

    repeat head    sum over its raw events e of  w[bucket(query time - time of e)]
    exact memory   a[log2 weight] + b[log2 (total weight / weight)] + c[bucket(query time - last)]

All weights start at 0. The idea is that of repeat and copy mechanisms (RepeatNet, Ren et al. 2019).
docs/methods.md has the evidence.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from rec2pm_jax.methods.exact_memory import total_weight
from rec2pm_jax.methods.windows import Window
from rec2pm_jax.nn.gaps import GAPS, MINUTE, WEIGHTS, gap_buckets, weight_buckets
from rec2pm_jax.typing import PADDING_ID, Array, OwnItems, State

GAIN = 5.0  # logits per unit of a weight: weights of these tables get few gradients


class OwnItemScores(nn.Module):
    """The weights of the addends.

    Attributes:
      repeat: whether there is a repeat head.
      entries: E, entries of the exact memory; 0 for none.
      segment: S.
      use_times: whether elapsed times are counted in minutes, or in events.
    """

    repeat: bool
    entries: int
    segment: int
    use_times: bool

    def setup(self) -> None:
        zeros = nn.initializers.zeros_init()
        # The second row is for rows that know their query time.
        if self.repeat:
            self.raw_gap = self.param("raw_gap", zeros, (2, GAPS))
        if self.entries:
            self.weight = self.param("weight", zeros, (WEIGHTS,))
            self.share = self.param("share", zeros, (WEIGHTS,))
            self.last_gap = self.param("last_gap", zeros, (2, GAPS))

    def __call__(self, state: State, window: Window, rows: Array) -> OwnItems:
        """Return the own items of users and their addends at some rows.

        Args:
          state: of B users.
          window: N raw events.
          rows: int32 [1 or B, n], which event rows.

        Returns:
          Ids [B, E + N], addends [B, n, E + N]; an event after the row has the addend 0.
        """
        ids, addends = [], []
        users = window.lengths.shape[0]
        rows = jnp.broadcast_to(rows, (users, rows.shape[1]))
        known = jnp.ones_like(rows)
        if self.use_times:
            assert window.known is not None and window.row_times is not None, "no times"
            known = jnp.take_along_axis(window.known, rows, axis=1).astype(jnp.int32)
            row_times = jnp.take_along_axis(window.row_times, rows, axis=1)
        if self.entries:
            table = state.exact
            now = state.segments[:, None] * self.segment + rows + 1
            if self.use_times:
                now = row_times // MINUTE
            total = total_weight(state.segments, self.segment)[:, None]
            share = weight_buckets(total // jnp.maximum(table.weights, 1))
            fixed = self.weight[weight_buckets(table.weights)] + self.share[share]
            gap = gap_buckets(now[:, :, None] - table.last[:, None, :], unit=1)
            addend = fixed[:, None] + self.last_gap[known[:, :, None], gap]
            addends.append(jnp.where(table.items[:, None] != PADDING_ID, addend, 0))
            ids.append(table.items)
        if self.repeat:
            place = jnp.arange(window.size, dtype=jnp.int32)
            if self.use_times:
                assert window.events.times is not None, "no times"
                gap = gap_buckets(row_times[:, :, None] - window.events.times[:, None, :])
            else:
                gap = gap_buckets(rows[:, :, None] + 1 - place, unit=1)
            seen = (place <= rows[:, :, None]) & (window.events.ids[:, None] != PADDING_ID)
            addends.append(jnp.where(seen, self.raw_gap[known[:, :, None], gap], 0))
            ids.append(window.events.ids)
        return OwnItems(jnp.concatenate(ids, axis=1), GAIN * jnp.concatenate(addends, axis=2))
