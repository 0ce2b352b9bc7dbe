"""Preference memory as the keys and values of query tokens in every layer (PersRec)."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.memory import Memory, PassInputs
from rec2pm_jax.methods.memory_tokens import QueryTokens
from rec2pm_jax.methods.windows import Window
from rec2pm_jax.nn.attention import KeyValues
from rec2pm_jax.typing import Array, Params, PRNGKey, State


@dataclasses.dataclass(frozen=True)
class KeyValueMemory(Memory):
    """A slot stores 2 x layers x D numbers: the keys and values of a query token in all layers.

    A token's keys in layer l hold what it saw in the layers below. So an overwritten memory reaches
    back layers - 1 segments and no further; append reaches as far as its groups. Keys are computed once
    and carry no age.

    Attributes:
      causal_tokens: a query token sees the tokens of its group up to itself, not all of them.
      global_positions: positions count from the first segment on, query tokens included, and each of
        the K segments of a training window has its own query tokens. Later segments share the last.
    """

    causal_tokens: bool = False
    global_positions: bool = False

    def __post_init__(self) -> None:
        if self.config.model.layers < 2:
            raise UserError(
                f"config.method.name={self.config.method.name} needs config.model.layers >= 2: keys "
                "and values of the first layer are made before the query tokens see any event."
            )

    @property
    def slot_dim(self) -> int:
        model = self.config.model
        return 2 * model.layers * model.heads * model.key_dim

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.model.dtype)

    @cached_property
    def tokens(self) -> QueryTokens:
        """The module with the learnable queries."""
        groups = self.config.data.segments if self.global_positions else 1
        return QueryTokens(self.config.model, groups * self.slots)

    def init_memory_params(self, rng: PRNGKey) -> Params:
        return {"memory": self.tokens.init(rng, 1)["params"]}

    def read_inputs(self, params: Params, state: State, window: Window) -> PassInputs:
        return self._inputs(params, state, window, with_queries=False)

    def new_memory(self, params: Params, state: State, window: Window) -> Array:
        x, layout, cache = self._inputs(params, state, window, with_queries=True)
        _, own = self.network.run(params, x, layout, cache=cache, unroll=True)
        return self._pack(jax.tree.map(lambda a: a[:, :, : self.slots], own))

    def queries(self, params: Params, segments: Array) -> Array:
        """Return the query tokens of segments with these numbers: int32 [B] -> [B, C, D]."""
        batch = segments.shape[0]
        tokens: Any = self.tokens  # Flax does not say what `apply` returns
        queries = tokens.apply({"params": params["memory"]}, batch, method="queries")
        if not self.global_positions:
            return queries
        own = jnp.minimum(segments, self.config.data.segments - 1)[:, None] * self.slots
        own = own + jnp.arange(self.slots, dtype=jnp.int32)
        after = self.config.data.segment + jnp.arange(self.slots, dtype=jnp.int32)[None]
        places = params["embedding"]["position_embedding"][self._number(segments, after)]
        return jnp.take_along_axis(queries, own[..., None], axis=1) + places.astype(queries.dtype)

    def embed(self, params: Params, window: Window, segments: Array) -> Array:
        """Embed events [B, N, D] of segments with these numbers, int32 [B]."""
        places = np.arange(window.size, dtype=np.int32)[None]
        if not self.global_positions:
            return self.network.embed(params, window, places)
        return self.network.embed(params, window, self._number(segments, jnp.asarray(places)))

    def positions(self, state: State, places: Array) -> Array:
        return self._number(state.segments, places) if self.global_positions else places

    def _number(self, segments: Array, places: Array) -> Array:
        """Number tokens from the first segment on: int32 [B, N]."""
        data = self.config.data
        first = jnp.minimum(segments, data.segments - 1) * (data.segment + self.slots)
        return first[:, None] + places

    def _inputs(
        self, params: Params, state: State, window: Window, *, with_queries: bool
    ) -> PassInputs:
        """Return [Q; S] on top of the cached tokens M, or the events alone."""
        sizes = layouts.Sizes(self.slots, self.capacity, self.config.data.segment)
        layout = layouts.update(
            window.lengths,
            state.groups,
            sizes,
            num_items=window.size,
            with_queries=with_queries,
            causal_queries=self.causal_tokens,
            row_times=window.row_times,
            key_times=window.events.times,
        )
        x = self.embed(params, window, state.segments)
        if with_queries:
            x = jnp.concatenate([self.queries(params, state.segments), x], axis=1)
        layout = layouts.without_memory_rows(layout, sizes)
        return PassInputs(x, layout, self._unpack(state.memory))

    def _pack(self, own: KeyValues) -> Array:
        """Pack k, v [layers, B, tokens, H, d] into [B, tokens, layers * 2 * H * d]."""
        both = jnp.moveaxis(jnp.stack(own, axis=1), (2, 3), (0, 1))
        return both.reshape(*both.shape[:2], -1)

    def _unpack(self, memory: Array) -> KeyValues:
        """Undo `_pack`."""
        model = self.config.model
        both = memory.reshape(*memory.shape[:2], model.layers, 2, model.heads, model.key_dim)
        both = jnp.moveaxis(both, (0, 1), (2, 3))
        return KeyValues(both[:, 0], both[:, 1])
