"""`full` and `recent`: one causal pass over the last events, nothing stored."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.network import Network, cut, segment_rows, training_events
from rec2pm_jax.methods.segments import ReadPlan, plan_last
from rec2pm_jax.typing import Array, Batch, Events, Params, PRNGKey, State, Terms


@dataclasses.dataclass(frozen=True)
class SinglePass:
    """Reads the last `read_length` events: L = K * S + R - 1 for `full`, S + R - 1 for `recent`.

    The two differ in that length alone. `recent` is trained on every segment of a training window
    by itself, the same windows as the update pass of rec2pm without a memory.
    """

    config: Config
    num_items: int

    @property
    def read_length(self) -> int:
        data = self.config.data
        return data.window if self.config.method.name == "full" else data.read_length

    @cached_property
    def network(self) -> Network:
        return Network(self.config, self.num_items, self.read_length)

    def init(self, rng: PRNGKey) -> Params:
        time = jnp.zeros((1, 1), jnp.int32)
        return self.network.init(rng, layouts.causal(1, row_times=time, key_times=time), tokens=1)

    def init_state(self, params: Params, batch_size: int) -> State:
        dim = self.config.model.dim
        none = jnp.zeros(batch_size, jnp.int32)
        return State(jnp.zeros((batch_size, 0, dim)), none, none)

    def update(self, params, state, events: Events, valid, next_time=None) -> State:
        return state

    def plan(self, n, max_segments: int = 0) -> ReadPlan:
        return plan_last(n, self.read_length)

    def _encode(self, params, events: Events, row_times, rng=None, rows=None) -> Array:
        length = events.ids.shape[1]
        layout = layouts.causal(length, row_times, events.times)
        x = self.network.embed(params, events, np.arange(length, dtype=np.int32)[None])
        return self.network.run(params, x, layout, rng, rows)

    def read_all(self, params, state, events: Events, valid, request_time=None) -> Array:
        row_times = layouts.query_times(events.times, valid, request_time)
        return self._encode(params, events, row_times).astype(jnp.float32)

    def read(self, params, state, events: Events, valid, request_time=None) -> Array:
        return last_valid(self.read_all(params, state, events, valid, request_time), valid)

    def score(self, params: Params, vectors: Array) -> Array:
        return self.network.score(params, vectors)

    def best(
        self, params: Params, vectors: Array, k: int, catalogue: Array | None = None
    ) -> tuple[Array, Array]:
        return self.network.best(params, vectors, k, catalogue)

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
        outputs = self._encode(params, events, next_times, drop_rng, rows)
        return {"ar": self.network.next_item(params, outputs, targets, weights, negative_rng, rows)}

    def loss_weights(self, step: Array) -> dict[str, Array]:
        return {"ar": jnp.float32(1.0)}


def last_valid(outputs: Array, valid: Array) -> Array:
    """The output after each row's last valid event: [B, N, D], bool [B, N] -> [B, D]."""
    last = jnp.maximum(jnp.sum(valid, axis=1) - 1, 0)
    return jnp.take_along_axis(outputs, last[:, None, None], axis=1)[:, 0]
