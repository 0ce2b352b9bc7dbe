"""Rec2PM (arXiv 2602.11605): recurrent preference memory by self-referential teacher forcing.

Training is parallel over segments, in two passes. The reference pass gives m_h^ref, the memory after
each segment h, from the whole history at once. The update pass reads [M_{h-1}; S_h; Q] for all h at
once, predicts next items (L_AR), and gives m_h^upd. L_con pulls m_h^ref and m_h^upd together, so that
one recurrent step lands where the global view lands. A user without archived segments has no memory
tokens in either pass, so m_0^ref == m_0^upd.
"""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.exact_memory import empty_exact
from rec2pm_jax.methods.memory import PassInputs, fold
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.network import Network
from rec2pm_jax.methods.registry import register_method
from rec2pm_jax.methods.token_memory import TokenMemory
from rec2pm_jax.methods.windows import Window, cut_windows, window_of
from rec2pm_jax.nn.cache import Rows
from rec2pm_jax.nn.dropout import per_row
from rec2pm_jax.typing import Array, Batch, Events, Params, PRNGKey, State, Terms


@register_method(
    "rec2pm",
    reads=(
        *("memory", "slots", "max_groups", "plain_memory", "exact_entries"),
        *("consistency", "reference_window", "live_memory_prob"),
    ),
)
def make_rec2pm(config: Config, num_items: int) -> Method:
    """Build Rec2PM: token memory, trained by `loss`."""
    network = Network(config, num_items, config.data.read_length)
    weights = (("ar", 1.0), ("consistency", config.method.consistency))
    return Method(TokenMemory(network), loss, weights, compress)


def loss(method: Method, params: Params, batch: Batch, rng: PRNGKey | None) -> Terms:
    """Return the terms `ar` (L_AR) and `consistency` (L_con).

    In training a share `live_memory_prob` of the readers gets the memory that an unbroken recurrence
    makes (a departure from the paper); the others get the reference memory. L_AR flows through either
    into what made it, and L_con has gradients on both sides.
    """
    memory = cast(TokenMemory, method.memory)
    data = method.config.data
    reference_rng = update_rng = chain_rng = negative_rng = mixing_rng = None
    if rng is not None:
        rngs = jax.random.split(rng, 5)
        reference_rng, update_rng, chain_rng, negative_rng, mixing_rng = rngs
    cut = cut_windows(batch, data, rng)
    windows, history = cut.windows, cut.history
    ends = (jnp.arange(data.segments, dtype=jnp.int32)[None] + 1) * data.segment
    reference = reference_pass(memory, params, history, ends, reference_rng)

    memory_in = reference[:, :-1]
    exact = memory.exact_before(history)
    share = method.config.method.live_memory_prob
    if share and mixing_rng is not None:
        live = live_memories(memory, params, memory_in, windows, chain_rng)
        chosen = per_row(
            lambda key: jax.random.bernoulli(key, share), mixing_rng, windows.step_rows
        )
        chosen = chosen.reshape(reference.shape[:2])[:, :-1]
        memory_in = jnp.where(chosen[..., None, None], live, memory_in)

    before = states_before(memory, memory_in)._replace(exact=exact)
    readout, at_queries = memory.update_pass(params, before, windows, update_rng)
    updated = memory.apply(params, "from_query_outputs", at_queries, before)
    terms = {
        "ar": method.network.next_item(
            params, readout, cut.targets, cut.weights, negative_rng, windows.step_rows
        )
    }
    whole = ends <= history.lengths[:, None]
    return terms | {"consistency": consistency(reference, updated.reshape(reference.shape), whole)}


def consistency(reference: Array, updated: Array, whole: Array) -> tuple[Array, Array]:
    """Return (sum, weight) of L_con: the mean of (m_h^ref - m_h^upd)^2 over slots and features.

    Counted are whole segments h >= 1. Segment 0 has nothing to be consistent with.

    Args:
      reference, updated: float32 [B, K, C, D].
      whole: bool [B, K], whether the user has all events of the segment.
    """
    squares = jnp.mean(jnp.square(updated - reference), axis=(2, 3))
    weights = (whole & (jnp.arange(whole.shape[1]) > 0)).astype(jnp.float32)
    return jnp.sum(squares * weights), jnp.sum(weights)


# --- reference pass ---


def reference_inputs(
    memory: TokenMemory, params: Params, history: Window, query_ends: Array
) -> PassInputs:
    """Return [S_0; Q; S_1; Q; ..] as the backbone takes it, queries first.

    Args:
      memory: of the method.
      params: of the method.
      history: whole histories, B rows of N events.
      query_ends: int32 [1 or B, groups], the end of the segment that each query group closes.
    """
    config = memory.config
    layout = layouts.reference(
        history.lengths,
        query_ends,
        layouts.Sizes(memory.slots, memory.capacity, config.data.segment),
        num_items=history.size,
        item_window=config.method.reference_window,
        row_times=history.row_times,
        key_times=history.events.times,
    )
    # Positions count within the segment, so that a segment looks alike in both passes.
    positions = np.arange(history.size, dtype=np.int32)[None] % config.data.segment
    queries = memory.apply(params, "queries", history.lengths.shape[0])
    queries = jnp.tile(queries, (1, query_ends.shape[1], 1))
    events = memory.network.embed(params, history, positions)
    return PassInputs(jnp.concatenate([queries, events], axis=1), layout)


def reference_pass(
    memory: TokenMemory,
    params: Params,
    history: Window,
    query_ends: Array,
    rng: PRNGKey | None = None,
) -> Array:
    """Return the reference memories float32 [B, groups, C, D].

    The queries that close segment h see every event of segments 0..h, and each other.

    Args:
      memory, params, history, query_ends: as in `reference_inputs`.
      rng: key of dropout, or None.
    """
    x, layout, _ = reference_inputs(memory, params, history, query_ends)
    queries = Rows(0, layout.num_slots)
    outputs, _ = memory.network.run(params, x, layout, rng=rng, rows=history.rows, wanted=queries)
    outputs = outputs.reshape(x.shape[0], query_ends.shape[1], memory.slots, -1)
    return memory.apply(params, "from_query_outputs", outputs)


def compress(
    method: Method, params: Params, events: Events, valid: Array, next_time: Array | None
) -> State:
    """Implement `Method.compress` by one reference pass per user."""
    memory = cast(TokenMemory, method.memory)
    segment = method.config.data.segment
    if events.ids.shape[1] % segment:
        raise ValueError(
            f"compress takes whole segments of {segment} events, got {events.ids.shape[1]}."
        )
    history = window_of(events, valid, next_time)
    lengths = history.lengths
    newest = reference_pass(memory, params, history, lengths[:, None])[:, 0]
    state = fold(memory.init_state(lengths.shape[0]), newest, lengths > 0)
    exact = memory.exact_after(history)
    return state._replace(segments=lengths // segment, exact=exact)


# --- the recurrence in training ---


def states_before(memory: TokenMemory, memories: Array) -> State:
    """Return the state before each segment, folded into the batch.

    Args:
      memory: of the method.
      memories: m_0 .. m_{K-2}, [B, K - 1, C, D].

    Returns:
      B * K states with empty exact memories. Row h of a user holds the newest G of m_0 .. m_{h-1},
      aligned to the right.
    """
    batch, earlier, slots, dim = memories.shape
    count, capacity = earlier + 1, min(memory.capacity, max(earlier, 1))
    padded = jnp.pad(memories, ((0, 0), (capacity, 0), (0, 0), (0, 0)))
    index = jnp.arange(count)[:, None] + jnp.arange(capacity)[None]
    stored = padded[:, index].reshape(batch * count, capacity * slots, dim)
    segments = jnp.tile(jnp.arange(count, dtype=jnp.int32), batch)
    exact = empty_exact(batch * count, memory.entries)
    return State(stored, jnp.minimum(segments, capacity), segments, exact)


def live_memories(
    memory: TokenMemory, params: Params, reference: Array, windows: Window, rng: PRNGKey | None
) -> Array:
    """Return the memories that an unbroken recurrence makes: m_0 .. m_{K-2}, [B, K - 1, C, D].

    All updates read the reference memory before their segment, so their outputs are computed in
    parallel; `chain` then runs the running mean over them. m_0 is the same in both passes, and no
    segment reads m_{K-1}.

    Args:
      memory, params: of the method.
      reference: m_0^ref .. m_{K-2}^ref, [B, K - 1, C, D].
      windows: of all segments, B * K rows.
      rng: key of dropout, or None.
    """
    users, count = reference.shape[:2]
    if count < 2:
        return reference

    def inner(a: Array) -> Array:  # B*K ... -> B*(K-2) ..., the segments but the first and the last
        by_user = a.reshape(users, count + 1, *a.shape[1:])[:, 1:-1]
        return by_user.reshape(users * (count - 1), *a.shape[1:])

    before, windows = jax.tree.map(inner, (states_before(memory, reference), windows))
    at_queries = memory.query_outputs(params, before, windows, rng)
    at_queries = at_queries.reshape(users, count - 1, *reference.shape[2:])
    return chain(memory, params, reference[:, 0], at_queries)


def chain(memory: TokenMemory, params: Params, first: Array, at_queries: Array) -> Array:
    """Return the memories of a recurrence: the running mean of m_0 and the outputs of updates.

    Only `from_query_outputs` and `fold`, which cost next to nothing, run one after the other.

    Args:
      memory, params: of the method.
      first: m_0, [B, C, D].
      at_queries: outputs at Q of the updates with segments 1, 2, .., [B, n, C, D].

    Returns:
      [B, n + 1, C, D].
    """
    all_rows = jnp.ones(len(first), bool)

    def body(state: State, outputs: Array) -> tuple[State, Array]:
        made = memory.apply(params, "from_query_outputs", outputs, state)
        return fold(state, made, all_rows), made

    start = fold(memory.init_state(len(first)), first, all_rows)
    _, memories = jax.lax.scan(body, start, jnp.swapaxes(at_queries, 0, 1))
    return jnp.concatenate([first[:, None], jnp.swapaxes(memories, 0, 1)], axis=1)
