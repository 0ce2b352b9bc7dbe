"""KV-Mask: one masked training pass, keys and values as memory (PersRec, arXiv 2601.03479)."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.memory import QueryTokens
from rec2pm_jax.methods.reader import Context
from rec2pm_jax.methods.recurrent import Recurrent, training_windows
from rec2pm_jax.nn.attention import KeyValues
from rec2pm_jax.typing import Array, Batch, State, Terms


@dataclasses.dataclass(frozen=True)
class KVMask(Recurrent):
    """Memory is the keys and values of the query tokens in every layer: 2 x layers x D per slot.

    Training masks one pass over all segments so that a segment sees earlier ones through their query
    tokens alone. Serving segment by segment with what these tokens left behind computes the same
    numbers, for any number of segments.

    A token's keys in layer l hold what it saw in the layers below. So an overwritten memory reaches
    back layers - 1 segments and no further; append reaches as far as its groups. Keys are made once and
    carry no age.
    """

    @property
    def memory_dim(self) -> int:
        """A slot's keys and values of all layers: layers x {k, v} x heads x head dim."""
        model = self.config.model
        return 2 * model.layers * model.heads * model.key_dim

    @property
    def memory_dtype(self) -> jnp.dtype:
        """Keys and values are stored as the layers compute them."""
        return jnp.dtype(self.config.model.dtype)

    @cached_property
    def tokens(self) -> QueryTokens:
        return QueryTokens(self.config.model, self.config.method.slots)

    def loss(self, params, batch: Batch, rng, *, step, target_params=None) -> Terms:
        """Term `ar` of the masked pass."""
        drop_rng, negative_rng = (None, None) if rng is None else jax.random.split(rng)
        windows = training_windows(batch, self.config.data)
        items = self._masked_pass(
            params,
            windows.events,
            windows.lengths.reshape(batch["ids"].shape[0], -1),
            windows.row_times,
            drop_rng,
            batch["index"],
        )
        at = (windows.targets, windows.weights, negative_rng, windows.rows)
        return {"ar": self.network.next_item(params, items, *at)}

    def _masked_pass(self, params, events, lengths, row_times, rng=None, rows=None) -> Array:
        """[events 0; Q; events 1; Q; ...] -> outputs at the events [B * K, N, D].

        events, row_times: windows [B * K, N]; lengths: int32 [B, K]; rows: int32 [B].
        """
        batch, count = lengths.shape
        window = events.ids.shape[1]

        def by_user(a):  # B*K N ... -> B K*N ...
            return a.reshape(batch, count * window, *a.shape[2:])

        key_times = None if row_times is None else by_user(events.times)
        layout = layouts.masked(
            lengths,
            window=window,
            slots=self.config.method.slots,
            max_groups=self.capacity,
            segment=self.config.data.segment,
            row_times=None if row_times is None else by_user(row_times),
            key_times=key_times,
        )
        queries = jnp.tile(self._queries(params, batch), (1, count, 1))
        x = jnp.concatenate([queries, by_user(self._embed(params, events))], axis=1)
        outputs = self.network.run(params, x, layout, rng, rows)
        return outputs[:, layout.num_slots :].reshape(batch * count, window, -1)

    def _context(self, params, state: State, events, lengths, row_times) -> Context:
        return self._cached(params, state, events, lengths, row_times, queries=False)

    def _new_memory(self, params, state: State, events, lengths, row_times) -> Array:
        context = self._cached(params, state, events, lengths, row_times, queries=True)
        _, own = self.network.serve(params, *context)
        return self._pack(jax.tree.map(lambda a: a[:, :, : self.config.method.slots], own))

    def _cached(self, params, state, events, lengths, row_times, *, queries) -> Context:
        """[Q; S] on top of the kept tokens M, or the events alone."""
        batch, num_items = events.ids.shape
        layout = layouts.cached(
            lengths,
            state.groups,
            num_items=num_items,
            slots=self.config.method.slots,
            max_groups=self.capacity,
            segment=self.config.data.segment,
            with_queries=queries,
            row_times=row_times,
            key_times=events.times,
        )
        x = self._embed(params, events)
        if queries:
            x = jnp.concatenate([self._queries(params, batch), x], axis=1)
        return Context(x, layout, self._unpack(state.memory))

    def _queries(self, params, batch: int) -> Array:
        return self.tokens.apply({"params": params["memory"]}, batch, method="queries")

    def _embed(self, params, events) -> Array:
        """Event tokens [B, N, D]; positions count within the window."""
        positions = np.arange(events.ids.shape[1], dtype=np.int32)[None]
        return self.network.embed(params, events, positions)

    def _pack(self, kept: KeyValues) -> Array:
        """k, v [layers, B, tokens, H, d] -> [B, tokens, layers * 2 * H * d]."""
        both = jnp.moveaxis(jnp.stack(kept, axis=1), (2, 3), (0, 1))
        return both.reshape(*both.shape[:2], -1)

    def _unpack(self, memory: Array) -> KeyValues:
        """The inverse of `_pack`."""
        model = self.config.model
        both = memory.reshape(*memory.shape[:2], model.layers, 2, model.heads, model.key_dim)
        both = jnp.moveaxis(both, (0, 1), (2, 3))
        return KeyValues(both[:, 0], both[:, 1])
