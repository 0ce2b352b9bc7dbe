"""Tok-Serial: recurrent memory trained by back-propagation through time (RMT, Bulatov et al. 2022)."""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp

from rec2pm_jax.config import Config
from rec2pm_jax.methods.memory import fold
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.network import Network
from rec2pm_jax.methods.registry import register_method
from rec2pm_jax.methods.token_memory import TokenMemory
from rec2pm_jax.methods.windows import Window, cut_windows
from rec2pm_jax.typing import Array, Batch, Params, PRNGKey, Readout, State, Terms


@register_method(
    "tok_serial",
    reads=("memory", "slots", "max_groups", "plain_memory", "exact_entries"),
)
def make_tok_serial(config: Config, num_items: int) -> Method:
    """Build Tok-Serial: Rec2PM's memory, trained by `loss`."""
    network = Network(config, num_items, config.data.read_length)
    return Method(TokenMemory(network), loss)


def loss(method: Method, params: Params, batch: Batch, rng: PRNGKey | None) -> Terms:
    """Return the term `ar` over all segments.

    The update pass of Rec2PM runs in a scan over segments, each with the memory that the segment
    before it made. Gradients cross segments through the memory.
    """
    memory = cast(TokenMemory, method.memory)
    data = method.config.data
    dropout_rng, negative_rng = (None, None) if rng is None else jax.random.split(rng)
    cut = cut_windows(batch, data, rng)
    users = batch["ids"].shape[0]

    def by_segment(a: Array) -> Array:  # B*K ... -> K B ...
        return jnp.swapaxes(a.reshape(users, data.segments, *a.shape[1:]), 0, 1)

    def body(state: State, window: Window) -> tuple[State, Readout]:
        readout, at_queries = memory.update_pass(params, state, window, dropout_rng)
        made = memory.apply(params, "from_query_outputs", at_queries, state)
        exact = memory.remember(state, window.first(data.segment))
        return fold(state, made, window.lengths > 0)._replace(exact=exact), readout

    segments = jax.tree.map(by_segment, cut.windows)
    _, readout = jax.lax.scan(body, memory.init_state(users), segments)
    readout = jax.tree.map(  # K B ... -> B*K ...
        lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:]), readout
    )
    return {
        "ar": method.network.next_item(
            params, readout, cut.targets, cut.weights, negative_rng, cut.windows.step_rows
        )
    }
