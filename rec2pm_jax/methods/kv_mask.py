"""KV-Mask: one masked training pass, keys and values as memory (PersRec, arXiv 2601.03479)."""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp

from rec2pm_jax.config import Config
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.key_value_memory import KeyValueMemory
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.network import Network
from rec2pm_jax.methods.registry import register_method
from rec2pm_jax.methods.windows import Window, cut_windows
from rec2pm_jax.typing import Array, Batch, Params, PRNGKey, Terms


@register_method("kv_mask", reads=("memory", "slots", "max_groups", "exact_entries"))
def make_kv_mask(config: Config, num_items: int) -> Method:
    """Build KV-Mask: keys and values as memory, trained by `loss`."""
    network = Network(config, num_items, config.data.read_length)
    return Method(KeyValueMemory(network), loss)


@register_method("persrec", reads=("memory", "slots", "max_groups", "exact_entries"))
def make_persrec(config: Config, num_items: int) -> Method:
    """Build KV-Mask in the form of PerSRec's code; `model.score_norm` is the length of its pass.

    A query token sees earlier tokens of its group only, positions count over the whole window with
    its query tokens, and each segment of a window has its own tokens.
    """
    data, slots = config.data, config.method.slots
    network = Network(config, num_items, data.segments * (data.segment + slots) + data.recent - 1)
    return Method(KeyValueMemory(network, causal_tokens=True, global_positions=True), loss)


def loss(method: Method, params: Params, batch: Batch, rng: PRNGKey | None) -> Terms:
    """Return the term `ar` of one masked pass over all segments.

    A segment sees earlier segments through their query tokens only. Serving segment by segment with the
    keys and values of these tokens computes the same numbers, for any number of segments.
    """
    memory = cast(KeyValueMemory, method.memory)
    dropout_rng, negative_rng = (None, None) if rng is None else jax.random.split(rng)
    cut = cut_windows(batch, method.config.data, rng)
    outputs = masked_pass(memory, params, cut.windows, batch["index"], dropout_rng)
    state = memory.counts_before(cut)
    readout = memory.readout(params, state, cut.windows, outputs)
    return {
        "ar": method.network.next_item(
            params, readout, cut.targets, cut.weights, negative_rng, cut.windows.step_rows
        )
    }


def masked_pass(
    memory: KeyValueMemory, params: Params, windows: Window, rows: Array, rng: PRNGKey | None
) -> Array:
    """Run [events 0; Q; events 1; Q; ..] and return the outputs at the events [B * K, N, D].

    Args:
      memory, params: of the method.
      windows: B * K rows of N events.
      rows: int32 [B], row numbers of the users for dropout.
      rng: key of dropout, or None.
    """
    batch, size = rows.shape[0], windows.size
    lengths = windows.lengths.reshape(batch, -1)

    def by_user(a: Array) -> Array:  # B*K N ... -> B K*N ...
        return a.reshape(batch, -1, *a.shape[2:])

    row_times, key_times = jax.tree.map(by_user, (windows.row_times, windows.events.times))
    layout = layouts.masked(
        lengths,
        layouts.Sizes(memory.slots, memory.capacity, memory.config.data.segment),
        window=size,
        causal_queries=memory.causal_tokens,
        row_times=row_times,
        key_times=key_times,
    )
    segments = jnp.tile(jnp.arange(lengths.shape[1], dtype=jnp.int32), batch)
    queries = by_user(memory.queries(params, segments))
    x = jnp.concatenate([queries, by_user(memory.embed(params, windows, segments))], axis=1)
    outputs, _ = memory.network.run(params, x, layout, rng=rng, rows=rows)
    return outputs[:, layout.num_slots :].reshape(lengths.size, size, -1)
