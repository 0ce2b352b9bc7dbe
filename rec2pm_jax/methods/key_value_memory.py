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
from rec2pm_jax.typing import Array, Events, Params, PRNGKey, State


@dataclasses.dataclass(frozen=True)
class KeyValueMemory(Memory):
    """A slot stores 2 x layers x D numbers: the keys and values of a query token in all layers.

    A token's keys in layer l hold what it saw in the layers below. So an overwritten memory reaches
    back layers - 1 segments and no further; append reaches as far as its groups. Keys are computed once
    and carry no age.
    """

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
        return QueryTokens(self.config.model, self.slots)

    def init_params(self, rng: PRNGKey) -> Params:
        return {"memory": self.tokens.init(rng, 1)["params"]}

    def read_inputs(self, params: Params, state: State, window: Window) -> PassInputs:
        return self._inputs(params, state, window, with_queries=False)

    def new_memory(self, params: Params, state: State, window: Window) -> Array:
        x, layout, cache = self._inputs(params, state, window, with_queries=True)
        _, own = self.network.run(params, x, layout, cache=cache, unroll=True)
        return self._pack(jax.tree.map(lambda a: a[:, :, : self.slots], own))

    def queries(self, params: Params, batch: int) -> Array:
        """Return Q repeated over the batch: [B, C, D]."""
        tokens: Any = self.tokens  # Flax does not say what `apply` returns
        return tokens.apply({"params": params["memory"]}, batch, method="queries")

    def embed(self, params: Params, events: Events) -> Array:
        """Embed events [B, N, D]; positions count within the window."""
        positions = np.arange(events.ids.shape[1], dtype=np.int32)[None]
        return self.network.embed(params, events, positions)

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
            row_times=window.row_times,
            key_times=window.events.times,
        )
        x = self.embed(params, window.events)
        if with_queries:
            x = jnp.concatenate([self.queries(params, x.shape[0]), x], axis=1)
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
