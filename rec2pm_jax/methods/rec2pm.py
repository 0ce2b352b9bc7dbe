"""Rec2PM (arXiv 2602.11605): recurrent preference memory by self-referential teacher forcing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.memory import fold
from rec2pm_jax.methods.network import sees_whole_catalogue, training_events
from rec2pm_jax.methods.recurrent import TokenMemory, Windows
from rec2pm_jax.methods.segments import slot_horizons
from rec2pm_jax.methods.sketch import up_to, widen
from rec2pm_jax.nn.attention import Layout
from rec2pm_jax.nn.cache import Rows
from rec2pm_jax.nn.dropout import per_row
from rec2pm_jax.typing import PADDING_ID, Array, Batch, Events, PRNGKey, State, Terms


@dataclasses.dataclass(frozen=True)
class Rec2PM(TokenMemory):
    """Trained in parallel over segments, by two passes.

    Reference pass (also one-time compression): queries closing segment h see every event of segments
    0..h and give m_h^ref. Update pass (training folds all segments into the batch; inference scans
    it): [M_{h-1}; S_h; Q] predicts next items and gives m_h^upd. A user without archived segments has
    no memory tokens in either pass, so m_0^ref == m_0^upd.
    """

    def compress(self, params, events: Events, valid, next_time=None) -> State:
        """One-time memory: a single reference-style pass over whole histories.

        events: [B, A]; valid: bool [B, A], a prefix of whole segments; next_time: as in `update`.
        Rows without any valid event get an empty state. Serves the same weights as `update`.

        Raises:
          ValueError: A is not a multiple of the segment length.
        """
        segment = self.config.data.segment
        if events.ids.shape[1] % segment:
            raise ValueError(
                f"compress takes whole segments of {segment} events, got {events.ids.shape[1]}."
            )
        lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
        row_times = layouts.query_times(events.times, lengths, next_time)
        segments = up_to(events.ids, lengths).reshape(len(lengths), -1, segment)
        memory, _ = self._reference_pass(
            params,
            events,
            lengths,
            lengths[:, None],
            row_times,
            sketches=self._sketches(params, segments),
        )
        state = fold(self.init_state(params, lengths.shape[0]), memory[:, 0], lengths > 0)
        return state._replace(segments=lengths // segment)

    def reference_tokens(
        self, params, events, lengths, query_ends, row_times
    ) -> tuple[Array, Layout]:
        """[S_0; Q; S_1; Q; ...] as the backbone takes it: [B, groups * C + N, D], queries first."""
        batch, num_items = events.ids.shape
        layout = layouts.reference(
            lengths,
            query_ends,
            num_items=num_items,
            slots=self.config.method.slots,
            horizons=tuple(h * self.config.data.segment for h in slot_horizons(self.config)),
            segment=self.config.data.segment,
            segments=self.config.method.reference_window,
            row_times=row_times,
            key_times=events.times,
        )
        # Positions count within the segment, so that a segment looks alike in both passes.
        positions = np.arange(num_items, dtype=np.int32)[None] % self.config.data.segment
        queries = self.tokens.apply({"params": params["memory"]}, batch, method="queries")
        queries = jnp.tile(queries, (1, query_ends.shape[1], 1))
        return jnp.concatenate([queries, self.network.embed(params, events, positions)], 1), layout

    def _reference_pass(
        self,
        params,
        events,
        lengths,
        query_ends,
        row_times,
        rng=None,
        rows=None,
        *,
        items=False,
        sketches=None,
    ) -> tuple[Array, Array | None]:
        """[S_0; Q; S_1; Q; ...] -> memories [B, groups, C, D] and outputs at the events [B, N, D].

        The latter only where `items` are asked for: the last layer computes no more than is wanted.
        sketches: float32 [B, segments, P, D], as of `_sketches`; or None.
        """
        x, layout = self.reference_tokens(params, events, lengths, query_ends, row_times)
        queries = Rows(0, layout.num_slots)
        if items:
            outputs = self.network.run(params, x, layout, rng, rows)
            at_queries, at_items = queries.of(outputs), outputs[:, layout.num_slots :]
        else:
            at_queries = self.network.run_rows(params, x, layout, queries, rng, rows)
            at_items = None
        shape = (x.shape[0], query_ends.shape[1], self.config.method.slots, -1)
        at_queries = at_queries.reshape(shape)
        if sketches is not None:
            # The mean over the segments up to each query: what the running mean of updates is near to.
            segment = self.config.data.segment
            count = jnp.maximum((query_ends + segment - 1) // segment, 1)[..., None, None]
            sums = jnp.take_along_axis(jnp.cumsum(sketches, axis=1), count - 1, axis=1)
            at_queries = self._noted(params, at_queries, sums / count.astype(jnp.float32))
        memory = self.tokens.apply({"params": params["memory"]}, at_queries, method="leave")
        return memory, at_items

    # --- training ---

    def loss(self, params, batch: Batch, rng, *, step, target_params=None) -> Terms:
        """Terms `ar`, `consistency`, and where weighted `reference_ar` and `bag`.

        Half of the readers (`live`) get the memory that an unbroken recurrence makes, the others the
        reference memory, and L_AR flows through either into what made it. L_con pulls both towards
        each other, as in the paper. If nobody read the reference memory it would be dragged towards
        what one step can predict, a constant; then stop its gradient (`stop_target`).
        """
        data, method = self.config.data, self.config.method
        rngs = dict.fromkeys(("ref", "upd", "live", "hide", "mix", "neg", "neg_ref"))
        if rng is not None:
            rngs = dict(zip(rngs, jax.random.split(rng, len(rngs)), strict=True))
        rows = batch["index"]
        windows = self._training_windows(params, batch)
        events, targets, weights, next_times = training_events(batch)
        span = data.segments * data.segment  # the last R - 1 events belong to no segment
        inside = jax.tree.map(lambda a: a[:, :span], events)
        lengths = jnp.sum(inside.ids != PADDING_ID, axis=1, dtype=jnp.int32)
        ends = (jnp.arange(data.segments, dtype=jnp.int32)[None] + 1) * data.segment
        inside_times = None if next_times is None else next_times[:, :span]
        reference, ref_items = self._reference_pass(
            params,
            inside,
            lengths,
            ends,
            inside_times,
            rngs["ref"],
            rows,
            items=method.reference_ar > 0,
            sketches=jax.tree.map(
                lambda a: a.reshape(-1, data.segments, *a.shape[1:]), windows.sketch
            ),
        )

        hidden = self._hidden(windows.lengths, rngs["hide"], windows.rows)

        memory_in = reference[:, :-1]
        if method.live and rng is not None:
            live = self._live(params, memory_in, windows, rngs["live"], hidden)
            chosen = per_row(
                lambda key: jax.random.bernoulli(key, method.live), rngs["mix"], windows.rows
            )
            chosen = chosen.reshape(reference.shape[:2])[:, :-1]
            memory_in = jnp.where(chosen[..., None, None], live, memory_in)
        before = self._previous(memory_in)
        items, at_queries = self._update_windows(params, before, windows, rngs["upd"], hidden)
        updated = self._leave(params, at_queries, before).reshape(reference.shape)

        at = (windows.targets, windows.weights, rngs["neg"], windows.rows)
        terms = {"ar": self.network.next_item(params, items, *at)}
        terms["consistency"] = self._consistency(reference, updated, ends <= lengths[:, None])
        if method.reference_ar:
            ref_items = widen(ref_items, self.config.item_dim)
            at = (targets[:, :span], weights[:, :span], rngs["neg_ref"], rows)
            terms["reference_ar"] = self.network.next_item(params, ref_items, *at)
        if method.bag:
            terms["bag"] = self._bag(params, reference, inside.ids, rows)
        return terms

    def loss_weights(self, step: Array) -> dict[str, Array]:
        method = self.config.method
        ramp = jnp.float32(1.0)
        if method.consistency_ramp:
            ramp = jnp.minimum(1.0, jnp.float32(step) / method.consistency_ramp)
        return {
            "ar": jnp.float32(1.0),
            "consistency": ramp * method.consistency,
            "reference_ar": jnp.float32(method.reference_ar),
            "bag": jnp.float32(method.bag),
        }

    def _live(self, params, reference: Array, windows: Windows, rng, hidden) -> Array:
        """The memories that an unbroken recurrence makes: m_0 .. m_{K-2}, [B, K - 1, C, D].

        Every update reads the reference memory before its segment, so what they say is made in
        parallel (`_chain` does the rest). m_0 is the same in both passes, and nobody reads m_{K-1}.

        reference: m_0^ref .. m_{K-2}^ref, [B, K - 1, C, D]; windows, hidden: of all segments.
        """
        users, count = reference.shape[:2]
        if count < 2:
            return reference

        def between(a):  # B*K ... -> B*(K-2) ..., the segments but the first and the last
            by_user = a.reshape(users, count + 1, *a.shape[1:])[:, 1:-1]
            return by_user.reshape(-1, *a.shape[1:])

        before, windows, hidden = jax.tree.map(
            between, (self._previous(reference), windows, hidden)
        )
        at_queries = self._query_windows(params, before, windows, rng, hidden)
        at_queries = at_queries.reshape(users, count - 1, *reference.shape[2:])
        return self._chain(params, reference[:, 0], at_queries)

    def _chain(self, params, first: Array, at_queries: Array) -> Array:
        """Memories of a recurrence: m_0, then the running mean of it and of what updates say.

        first: m_0, [B, C, D]; at_queries: outputs at Q of the updates with segments 1, 2, .., [B, n, C,
        D]. Only `leave` and `fold`, which cost next to nothing, run one after the other. Returns
        [B, n + 1, C, D].
        """
        all_rows = jnp.ones(len(first), bool)

        def body(state, at_query):
            memory = self._leave(params, at_query, state)
            return fold(state, memory, all_rows), memory

        start = fold(self.init_state(params, len(first)), first, all_rows)
        _, memories = jax.lax.scan(body, start, jnp.swapaxes(at_queries, 0, 1))
        return jnp.concatenate([first[:, None], jnp.swapaxes(memories, 0, 1)], axis=1)

    def _previous(self, memories: Array) -> State:
        """The state before each segment, folded into the batch: [B, K - 1, C, D] -> rows B * K.

        memories: m_0 .. m_{K-2}. Row h holds m_0 .. m_{h-1}, the newest `capacity` of them, aligned to
        the right.
        """
        batch, earlier, slots, dim = memories.shape
        count, capacity = earlier + 1, min(self.capacity, max(earlier, 1))
        padded = jnp.pad(memories, ((0, 0), (capacity, 0), (0, 0), (0, 0)))
        index = jnp.arange(count)[:, None] + jnp.arange(capacity)[None]
        memory = padded[:, index].reshape(batch * count, capacity * slots, dim)
        segments = jnp.tile(jnp.arange(count, dtype=jnp.int32), batch)
        return State(memory, jnp.minimum(segments, capacity), segments)

    def _hidden(self, lengths: Array, rng: PRNGKey | None, rows: Array) -> Array | None:
        """First visible event per row: hides a random older part of some working memories."""
        if not self.config.method.hide or rng is None:
            return None
        draws = per_row(lambda key: jax.random.uniform(key, (2,)), rng, rows)
        start = jnp.floor(draws[:, 0] * lengths.astype(jnp.float32)).astype(jnp.int32)
        return jnp.where(draws[:, 1] < self.config.method.hide, start, 0)

    def _consistency(self, reference, updated, whole) -> tuple[Array, Array]:
        """L_con over whole segments h >= 1 (h = 0 has nothing to be consistent with): (sum, weight)."""
        if self.config.method.stop_target:
            reference = jax.lax.stop_gradient(reference)
        squares = jnp.square(updated - reference)
        reduce = jnp.mean if self.config.method.consistency_reduction == "mean" else jnp.sum
        weights = (whole & (jnp.arange(whole.shape[1]) > 0)).astype(jnp.float32)
        return jnp.sum(reduce(squares, axis=(2, 3)) * weights), jnp.sum(weights)

    def _bag(self, params, reference: Array, ids: Array, rows: Array) -> tuple[Array, Array]:
        """What m_h^ref recalls should be the items of segment h + 1 (a departure from the paper)."""
        batch, count = reference.shape[:2]
        vectors = self.tokens.apply(
            {"params": params["memory"]}, reference[:, :-1], method="recall"
        )
        following = ids.reshape(batch, count, -1)[:, 1:]
        present = following != PADDING_ID
        if not sees_whole_catalogue(params):
            # Every item of a segment is one prediction of the same vector.
            vectors = jnp.repeat(vectors, following.shape[2], axis=1)
            at = (following.reshape(batch, -1), present.reshape(batch, -1).astype(jnp.float32))
            return self.network.next_item(params, vectors, *at, None, rows)
        log_p = jax.nn.log_softmax(self.network.score(params, vectors), axis=-1)
        losses = -jnp.take_along_axis(log_p, following, axis=-1)
        return jnp.sum(jnp.where(present, losses, 0.0)), jnp.sum(present).astype(jnp.float32)
