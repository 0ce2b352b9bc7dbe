"""A linear recurrence (LRU, as in LRURec): the state is the hidden state of all layers.

The rival with a state of constant size that nothing else has to train: a linear recurrence is computed
in parallel over the whole window, and serving resumes from the stored state exactly.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.memory import Memory, PassInputs
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.network import Network
from rec2pm_jax.methods.registry import register_method
from rec2pm_jax.methods.windows import Window, cut, cut_windows, training_events
from rec2pm_jax.nn.attention import KeyValues
from rec2pm_jax.nn.cache import Rows
from rec2pm_jax.typing import Array, Batch, Params, PRNGKey, State, Terms


@register_method("linear_recurrence", reads=("exact_entries",))
def make_linear_recurrence(config: Config, num_items: int) -> Method:
    """Build the linear recurrence; its backbone is `lru`, whatever `model.backbone` names.

    The state takes 2 * layers * D numbers: as much as 4 slots with two layers.
    """
    model = dataclasses.replace(config.model, backbone="lru", relative_bias="none")
    network = Network(dataclasses.replace(config, model=model), num_items, config.data.segment)
    return Method(HiddenState(network), loss)


@dataclasses.dataclass(frozen=True)
class HiddenState(Memory):
    """One slot: real and imaginary parts of the hidden state in all layers."""

    @property
    def slots(self) -> int:
        return 1

    @property
    def capacity(self) -> int:
        return 1

    @property
    def slot_dim(self) -> int:
        model = self.config.model
        return 2 * model.layers * model.heads * model.key_dim

    def positions(self, state: State, places: Array) -> Array:
        return places % self.config.data.segment

    def read_inputs(self, params: Params, state: State, window: Window) -> PassInputs:
        sizes = layouts.Sizes(slots=1, groups=1, segment=self.config.data.segment)
        layout = layouts.update(
            window.lengths,
            jnp.ones_like(state.groups),
            sizes,
            num_items=window.size,
            with_queries=False,
        )
        # The stored state is a cached token before the events.
        layout = layouts.without_memory_rows(layout, sizes)
        model = self.config.model
        shape = (len(state.memory), 2, model.layers, 1, model.heads, model.key_dim)
        real, imaginary = jnp.moveaxis(state.memory.reshape(shape), (1, 2), (0, 1))
        x = self.network.embed(params, window, positions_of(window, sizes.segment))
        return PassInputs(x, layout, KeyValues(real, imaginary))

    def new_memory(self, params: Params, state: State, window: Window) -> Array:
        x, layout, cache = self.read_inputs(params, state, window)
        _, own = self.network.run(params, x, layout, cache=cache, unroll=True)
        last = Rows(jnp.maximum(window.lengths - 1, 0), 1)
        parts = jnp.stack([jax.vmap(last.of)(part)[:, :, 0] for part in own])  # 2 layers B H d
        return jnp.moveaxis(parts, 2, 0).reshape(len(state.memory), 1, self.slot_dim)


def positions_of(window: Window, segment: int) -> np.ndarray:
    """Return positions within the segment, so that a segment looks alike in training and serving."""
    return np.arange(window.size, dtype=np.int32)[None] % segment


def loss(method: Method, params: Params, batch: Batch, rng: PRNGKey | None) -> Terms:
    """Return the term `ar` of one pass over the whole window."""
    memory, data = method.memory, method.config.data
    dropout_rng, negative_rng = (None, None) if rng is None else jax.random.split(rng)
    whole, _, _ = training_events(batch, rng)
    x = method.network.embed(params, whole, positions_of(whole, data.segment))
    layout = layouts.causal(whole.size, None, None)
    outputs, _ = method.network.run(params, x, layout, rng=dropout_rng, rows=whole.rows)
    outputs = cut(outputs, data.segment, data.read_length, data.segments)
    windows, _, targets, weights = batches = cut_windows(batch, data, rng)
    readout = memory.readout(params, memory.counts_before(batches), windows, outputs)
    rows = windows.step_rows
    return {"ar": method.network.next_item(params, readout, targets, weights, negative_rng, rows)}
