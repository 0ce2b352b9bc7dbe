"""What all methods with a memory share: one segment is read and folded at a time.

Methods differ in `loss`, how the weights are trained, and in what a memory is: tokens that re-enter
the backbone (`TokenMemory`), or cached keys and values (`kv_mask.KVMask`).
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.memory import MemoryTokens, fold
from rec2pm_jax.methods.network import cut, segment_rows, training_events
from rec2pm_jax.methods.reader import Context, Reader
from rec2pm_jax.methods.segments import ReadPlan, plan_memory, slot_horizons
from rec2pm_jax.methods.sketch import up_to
from rec2pm_jax.nn.attention import Layout
from rec2pm_jax.nn.cache import Rows
from rec2pm_jax.typing import PADDING_ID, Array, Batch, Events, Params, PRNGKey, State


@dataclasses.dataclass(frozen=True)
class Recurrent(Reader):
    """Serves [M; recent events] and folds [M; S_h; Q] into M, overwritten or appended to.

    A subclass names its `tokens`, the `memory_dim` of a slot, its `loss`, its `_context` and
    `_new_memory(params, state, events, lengths, row_times)`, which returns m_k [B, C, memory_dim].
    """

    @property
    def capacity(self) -> int:
        """G: groups that a state holds."""
        method = self.config.method
        return method.max_groups if method.memory == "append" else 1

    @property
    def memory_dim(self) -> int:
        """Numbers that are stored per slot."""
        return self.config.model.dim

    @property
    def memory_dtype(self) -> jnp.dtype:
        """The dtype memory is stored in."""
        return jnp.dtype(jnp.float32)

    @property
    def tokens(self) -> nn.Module:
        """The parameters of the memory, `params["memory"]`."""
        raise NotImplementedError

    def init(self, rng: PRNGKey) -> Params:
        network_rng, memory_rng = jax.random.split(rng)
        times = jnp.zeros((1, 1), jnp.int32)
        params = self.network.init(network_rng, layouts.causal(1, times, times), 1)
        params["memory"] = self.tokens.init(memory_rng, 1)["params"]
        return params

    def init_state(self, params: Params, batch_size: int) -> State:
        rows = self.capacity * self.config.method.slots
        memory = jnp.zeros((batch_size, rows, self.memory_dim), self.memory_dtype)
        none = jnp.zeros(batch_size, jnp.int32)
        return State(memory, none, none)

    def plan(self, n, max_segments: int = 0) -> ReadPlan:
        return plan_memory(n, self.config.data, max_segments)

    def update(self, params, state, events: Events, valid, next_time=None) -> State:
        lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
        row_times = layouts.query_times(events.times, lengths, next_time)
        memory = self._new_memory(params, state, events, lengths, row_times)
        return fold(state, memory, lengths > 0)

    def _new_memory(self, params, state: State, events: Events, lengths, row_times) -> Array:
        raise NotImplementedError

    def loss_weights(self, step: Array) -> dict[str, Array]:
        return {"ar": jnp.float32(1.0)}


@dataclasses.dataclass(frozen=True)
class TokenMemory(Recurrent):
    """Memory is the outputs at Q, C x D floats per group, and re-enters as tokens.

    `params` has keys `embedding`, `backbone` and `memory`. A user without archived segments has no
    memory tokens.
    """

    @cached_property
    def tokens(self) -> MemoryTokens:
        method = self.config.method
        return MemoryTokens(
            self.config.model,
            method.slots,
            method.max_groups,
            method.running_mean,
            method.recall,
            slot_horizons(self.config),
            method.sketch,
        )

    def update_tokens(
        self, params, state: State, events, lengths, row_times, *, queries, hidden=None
    ) -> tuple[Array, Layout]:
        """[M; S; Q] as the backbone takes it: tokens [B, slots + N, D] and who sees whom.

        `hidden` is as in `layouts.update`; the slots are memory, then queries if any.
        """
        slots = self.config.method.slots
        batch, num_items = events.ids.shape
        layout = layouts.update(
            lengths,
            state.groups,
            num_items=num_items,
            slots=slots,
            max_groups=state.memory.shape[1] // slots,
            segment=self.config.data.segment,
            with_queries=queries,
            hidden=hidden,
            row_times=row_times,
            key_times=events.times,
        )
        positions = np.arange(num_items, dtype=np.int32)[None]
        variables = {"params": params["memory"]}
        parts = [self.tokens.apply(variables, state.memory, method="enter")]
        if queries:
            parts.append(self.tokens.apply(variables, batch, method="queries"))
        parts.append(self.network.embed(params, events, positions))
        return jnp.concatenate(parts, axis=1), layout

    def _finish(self, params, state: State, events, lengths, vectors: Array) -> Array:
        return self.tokens.apply({"params": params["memory"]}, vectors, state, method="remind")

    def _context(self, params, state: State, events, lengths, row_times) -> Context:
        tokens = self.update_tokens(params, state, events, lengths, row_times, queries=False)
        return Context(*tokens, kept=None)

    def _new_memory(self, params, state: State, events, lengths, row_times) -> Array:
        x, layout = self.update_tokens(params, state, events, lengths, row_times, queries=True)
        at_queries, _ = self.network.serve(params, x, layout, only=self._queries(layout))
        sketch = self._sketches(params, up_to(events.ids, lengths))
        return self._leave(params, self._noted(params, at_queries, sketch), state)

    def _query_windows(self, params, state: State, windows: Windows, rng, hidden=None) -> Array:
        """What updates with the segments of `windows` say, in training: outputs at Q, [B, C, D].

        What only a reader needs is left out: events after the segment, other rows of the last layer.
        """
        segment = self.config.data.segment
        events, row_times = jax.tree.map(
            lambda a: a[:, :segment], (windows.events, windows.row_times)
        )
        lengths = jnp.minimum(windows.lengths, segment)
        x, layout = self.update_tokens(
            params, state, events, lengths, row_times, queries=True, hidden=hidden
        )
        only = self._queries(layout)
        at_queries = self.network.run_rows(params, x, layout, only, rng, windows.rows)
        return self._noted(params, at_queries, windows.sketch)

    def _queries(self, layout: Layout) -> Rows:
        """The query tokens of `update_tokens`."""
        slots = self.config.method.slots
        return Rows(layout.num_slots - slots, slots)

    def _sketches(self, params, ids: Array) -> Array | None:
        """Of each segment, where `method.sketch` asks for it: int32 [..., S] -> float32 [..., P, D].

        Sums of item parts, scaled so that S unrelated items have unit scale, as outputs of layers do.
        """
        if not self.config.method.sketch:
            return None
        return jnp.sum(self.network.parts(params, ids), axis=-3) * self.config.data.segment**-0.5

    def _noted(self, params, at_queries: Array, sketch: Array | None) -> Array:
        """Outputs at Q [..., C, D] with what is summed beside the backbone, if anything, in them."""
        if sketch is None:
            return at_queries
        return self.tokens.apply({"params": params["memory"]}, at_queries, sketch, method="note")

    def _leave(self, params, at_queries: Array, state: State) -> Array:
        return self.tokens.apply({"params": params["memory"]}, at_queries, state, method="leave")

    def _update_pass(
        self,
        params,
        state: State,
        events,
        lengths,
        row_times,
        rng=None,
        rows=None,
        hidden=None,
        sketch=None,
    ) -> tuple[Array, Array]:
        """[M; S; Q] -> outputs at the events [B, N, W] and, with `sketch` noted, at Q [B, C, D].

        `_leave` makes memory of the latter. sketch: float32 [B, P, D], as of `_sketches`; or None.
        """
        x, layout = self.update_tokens(
            params, state, events, lengths, row_times, queries=True, hidden=hidden
        )
        outputs = self.network.run(params, x, layout, rng, rows)
        items = self._finish(params, state, events, lengths, outputs[:, layout.num_slots :])
        return items, self._noted(params, self._queries(layout).of(outputs), sketch)

    def _update_windows(
        self, params, state: State, windows: Windows, rng, hidden=None
    ) -> tuple[Array, Array]:
        """The update pass of training: `_update_pass` over (some of) the windows of a batch."""
        return self._update_pass(
            params,
            state,
            windows.events,
            windows.lengths,
            windows.row_times,
            rng,
            windows.rows,
            hidden,
            windows.sketch,
        )

    def _training_windows(self, params, batch: Batch) -> Windows:
        """`training_windows`, with the sketches of the segments where there are any."""
        data = self.config.data
        segments = batch["ids"][:, : data.segments * data.segment].reshape(-1, data.segment)
        return training_windows(batch, data)._replace(sketch=self._sketches(params, segments))


class Windows(NamedTuple):
    """The read windows of a training batch, K per user folded into the batch (user after user).

    Window h holds the N = S + R - 1 events from h * S on; the first S of them are segment h.

    Attributes:
      events: fields [B * K, N].
      targets: int32 [B * K, N], the next item; weights: float32, 1 where there is one.
      row_times: int32 [B * K, N], times of the next events, or None.
      lengths: int32 [B * K], events per window.
      rows: int32 [B * K], numbers of the windows, unique within the step.
      sketch: float32 [B * K, P, D], of the segments, where methods keep one; else None.
    """

    events: Events
    targets: Array
    weights: Array
    row_times: Array | None
    lengths: Array
    rows: Array
    sketch: Array | None = None


def training_windows(batch: Batch, data: DataConfig) -> Windows:
    """Cuts a training batch (see `Method.loss`) into the windows that reads see."""
    cut_to = (data.segment, data.read_length, data.segments)
    events, targets, weights, row_times = cut(training_events(batch), *cut_to)
    lengths = jnp.sum(events.ids != PADDING_ID, axis=1, dtype=jnp.int32)
    rows = segment_rows(batch["index"], data.segments)
    return Windows(events, targets, weights, row_times, lengths, rows)
