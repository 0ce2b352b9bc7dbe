"""`full` and `recent`: one causal pass over the last events, and nothing stored."""

from __future__ import annotations

import jax

from rec2pm_jax.config import Config
from rec2pm_jax.methods.memory import NoMemory
from rec2pm_jax.methods.method import Loss, Method
from rec2pm_jax.methods.network import Network
from rec2pm_jax.methods.registry import register_method
from rec2pm_jax.methods.windows import Window, cut_windows, training_events
from rec2pm_jax.typing import Array, Batch, Params, PRNGKey, State, Terms


@register_method("full", reads=())
def make_full(config: Config, num_items: int) -> Method:
    """Build `full`: it reads the last L = K * S + R - 1 events."""
    return _without_memory(config, num_items, config.data.window, full_loss)


@register_method("recent", reads=("exact_entries",))
def make_recent(config: Config, num_items: int) -> Method:
    """Build `recent`: it reads the last S + R - 1 events, as the readers of a memory do.

    With `method.exact_entries` it also has the exact memory of the events before.
    """
    return _without_memory(config, num_items, config.data.read_length, recent_loss, exact=True)


def _without_memory(
    config: Config, num_items: int, length: int, loss: Loss, exact: bool = False
) -> Method:
    network = Network(config, num_items, length)
    return Method(NoMemory(network, length, exact), loss)


def full_loss(method: Method, params: Params, batch: Batch, rng: PRNGKey | None) -> Terms:
    """Return the term `ar` over all events of the training window."""
    window, targets, weights = training_events(batch, rng)
    state = method.init_state(params, len(window.lengths))
    return _causal_loss(method, params, state, window, targets, weights, rng)


def recent_loss(method: Method, params: Params, batch: Batch, rng: PRNGKey | None) -> Terms:
    """Return the term `ar` over the windows that Rec2PM's update pass reads, without a memory."""
    cut = cut_windows(batch, method.config.data, rng)
    state = method.memory.counts_before(cut)
    return _causal_loss(method, params, state, cut.windows, cut.targets, cut.weights, rng)


def _causal_loss(
    method: Method,
    params: Params,
    state: State,
    window: Window,
    targets: Array,
    weights: Array,
    rng: PRNGKey | None,
) -> Terms:
    dropout_rng, negative_rng = (None, None) if rng is None else jax.random.split(rng)
    x, layout, _ = method.memory.read_inputs(params, state, window)
    outputs, _ = method.network.run(params, x, layout, rng=dropout_rng, rows=window.rows)
    readout = method.memory.readout(params, state, window, outputs)
    rows = window.step_rows
    return {"ar": method.network.next_item(params, readout, targets, weights, negative_rng, rows)}
