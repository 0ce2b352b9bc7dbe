"""`full` and `recent`: one causal pass over the last events, nothing stored."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.network import cut, segment_rows, training_events
from rec2pm_jax.methods.reader import Context, Reader
from rec2pm_jax.methods.segments import ReadPlan, plan_last
from rec2pm_jax.methods.sketch import WindowSketch, up_to
from rec2pm_jax.typing import Array, Batch, Events, Params, PRNGKey, State, Terms


@dataclasses.dataclass(frozen=True)
class SinglePass(Reader):
    """Reads the last `read_length` events: L = K * S + R - 1 for `full`, S + R - 1 for `recent`.

    The two differ in that length alone. `recent` is trained on every segment of a training window
    by itself, the same windows as the update pass of rec2pm without a memory.
    """

    @property
    def read_length(self) -> int:
        data = self.config.data
        return data.window if self.config.method.name == "full" else data.read_length

    def init(self, rng: PRNGKey) -> Params:
        time = jnp.zeros((1, 1), jnp.int32)
        layout = layouts.causal(1, row_times=time, key_times=time)
        params = self.network.init(rng, layout, tokens=1)
        if self.sketch is not None:
            parts = jnp.zeros((1, self.sketch.parts, self.sketch.dim))
            params["sketch"] = self.sketch.init(rng, parts[:, 0], parts)["params"]
        return params

    @cached_property
    def sketch(self) -> WindowSketch | None:
        """Of the events that are read, where `method.sketch` asks for one."""
        parts = self.config.method.sketch
        return WindowSketch(parts, self.config.model.dim) if parts else None

    def init_state(self, params: Params, batch_size: int) -> State:
        dim = self.config.model.dim
        none = jnp.zeros(batch_size, jnp.int32)
        return State(jnp.zeros((batch_size, 0, dim)), none, none)

    def update(self, params, state, events: Events, valid, next_time=None) -> State:
        return state

    def plan(self, n, max_segments: int = 0) -> ReadPlan:
        return plan_last(n, self.read_length)

    def _context(self, params, state, events: Events, lengths, row_times) -> Context:
        length = events.ids.shape[1]
        layout = layouts.causal(length, row_times, events.times)
        x = self.network.embed(params, events, np.arange(length, dtype=np.int32)[None])
        return Context(x, layout, None)

    def _finish(self, params, state, events: Events, lengths, vectors: Array) -> Array:
        return self._sketched(params, vectors, up_to(events.ids, lengths))

    def _sketched(self, params, vectors: Array, ids: Array) -> Array:
        """Outputs after all of ids [B, N], [B, D], or after each, [B, N, D], and their sketch."""
        if self.sketch is None:
            return vectors
        parts = self.network.parts(params, ids)
        sums = jnp.sum(parts, axis=1) if vectors.ndim == 2 else jnp.cumsum(parts, axis=1)
        return self.sketch.apply({"params": params["sketch"]}, vectors, sums)

    def loss(self, params, batch: Batch, rng, *, step, target_params=None) -> Terms:
        events, targets, weights, next_times = training_events(batch)
        rows = batch["index"]
        if self.config.method.name == "recent":
            data = self.config.data
            window = (data.segment, data.read_length, data.segments)
            events, targets, weights, next_times = cut(
                (events, targets, weights, next_times), *window
            )
            rows = segment_rows(rows, data.segments)
        drop_rng, negative_rng = (None, None) if rng is None else jax.random.split(rng)
        x, layout, _ = self._context(params, None, events, None, next_times)
        outputs = self.network.run(params, x, layout, drop_rng, rows)
        outputs = self._sketched(params, outputs, events.ids)
        return {"ar": self.network.next_item(params, outputs, targets, weights, negative_rng, rows)}

    def loss_weights(self, step: Array) -> dict[str, Array]:
        return {"ar": jnp.float32(1.0)}
