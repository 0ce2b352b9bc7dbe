"""Preference memory as tokens: C x D numbers per group, made at the queries and read as tokens."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.memory import Memory, PassInputs
from rec2pm_jax.methods.memory_tokens import MemoryTokens
from rec2pm_jax.methods.windows import Window
from rec2pm_jax.nn.cache import Rows
from rec2pm_jax.typing import Array, Params, PRNGKey, Readout, State


@dataclasses.dataclass(frozen=True)
class TokenMemory(Memory):
    """Memory is the outputs at Q, and re-enters the backbone as tokens.

    `params["memory"]` holds the parameters of `MemoryTokens`. A user without archived segments has no
    memory tokens.
    """

    @cached_property
    def tokens(self) -> MemoryTokens:
        """The module with the parameters of the memory."""
        method = self.config.method
        return MemoryTokens(
            self.config.model,
            method.slots,
            method.max_groups,
            method.plain_memory,
        )

    def init_memory_params(self, rng: PRNGKey) -> Params:
        return {"memory": self.tokens.init(rng, 1)["params"]}

    def apply(self, params: Params, function: str, *args: Array | State | int | None) -> Array:
        """Call a function of `MemoryTokens` with the method's params."""
        tokens: Any = self.tokens  # Flax does not say what `apply` returns
        return tokens.apply({"params": params["memory"]}, *args, method=function)

    # --- serving ---

    def read_inputs(self, params: Params, state: State, window: Window) -> PassInputs:
        return self.update_inputs(params, state, window, with_queries=False)

    def add_to_outputs(self, params: Params, state: State, window: Window, vectors: Array) -> Array:
        return self.apply(params, "add_recall", vectors, state)

    def new_memory(self, params: Params, state: State, window: Window) -> Array:
        x, layout, _ = self.update_inputs(params, state, window, with_queries=True)
        outputs, _ = self.network.run(
            params, x, layout, wanted=self._queries_of(layout), unroll=True
        )
        return self.apply(params, "from_query_outputs", outputs, state)

    # --- passes ---

    def update_inputs(
        self, params: Params, state: State, window: Window, *, with_queries: bool
    ) -> PassInputs:
        """Return [M; S; Q] as the backbone takes it, or [M; S] without queries.

        The tokens are [memory; queries; events], [B, G * C (+ C) + N, D].
        """
        layout = layouts.update(
            window.lengths,
            state.groups,
            layouts.Sizes(
                self.slots, state.memory.shape[1] // self.slots, self.config.data.segment
            ),
            num_items=window.size,
            with_queries=with_queries,
            row_times=window.row_times,
            key_times=window.events.times,
        )
        positions = np.arange(window.size, dtype=np.int32)[None]
        parts = [self.apply(params, "to_tokens", state.memory)]
        if with_queries:
            parts.append(self.apply(params, "queries", state.groups.shape[0]))
        parts.append(self.network.embed(params, window, positions))
        return PassInputs(jnp.concatenate(parts, axis=1), layout)

    def update_pass(
        self, params: Params, state: State, window: Window, rng: PRNGKey | None
    ) -> tuple[Readout, Array]:
        """Run the update pass [M_{h-1}; S_h; Q] in training.

        Args:
          params: of the method.
          state: M_{h-1}, one row per window.
          window: the window of segment h, with row numbers.
          rng: key of dropout, or None.

        Returns:
          (what the events read, vectors [B, N, D]; outputs at Q [B, C, D]);
          `from_query_outputs` makes m_h of the latter.
        """
        x, layout, _ = self.update_inputs(params, state, window, with_queries=True)
        outputs, _ = self.network.run(params, x, layout, rng=rng, rows=window.rows)
        readout = self.readout(params, state, window, outputs[:, layout.num_slots :])
        at_queries = self._queries_of(layout).of(outputs)
        return readout, at_queries

    def query_outputs(
        self, params: Params, state: State, window: Window, rng: PRNGKey | None
    ) -> Array:
        """Return the second result of `update_pass` and compute nothing that only readers need.

        Events after the segment, and rows of the last layer other than Q, are left out.
        """
        window = window.first(self.config.data.segment)
        x, layout, _ = self.update_inputs(params, state, window, with_queries=True)
        wanted = self._queries_of(layout)
        return self.network.run(params, x, layout, rng=rng, rows=window.rows, wanted=wanted)[0]

    def _queries_of(self, layout: layouts.Layout) -> Rows:
        """Return the query tokens of `update_inputs`: the last C slots."""
        return Rows(layout.num_slots - self.slots, self.slots)
