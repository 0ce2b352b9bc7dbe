"""Preference memory as tokens: how it enters a pass, how it leaves it, and how states fold it."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from rec2pm_jax.config import ModelConfig
from rec2pm_jax.methods.sketch import RECALL_GAIN, widen
from rec2pm_jax.nn.sasrec import scaled_identity
from rec2pm_jax.typing import Array, State

OWN_GAIN = 0.3  # of what the backbone says in a slot that also sums item vectors, at the start


class QueryTokens(nn.Module):
    """The learnable query Q.

    Attributes:
      slots: C.
    """

    config: ModelConfig
    slots: int

    def setup(self):
        shape = (self.slots, self.config.dim)
        self.query_embedding = self.param("query_embedding", self.apart, shape)

    @property
    def apart(self):
        """Initialiser of distinct slots, at the items' scale."""
        return nn.initializers.truncated_normal(self.config.dim**-0.5)

    def __call__(self, batch: int) -> Array:
        """Initialises everything; used by `init` only."""
        return self.queries(batch)

    def queries(self, batch: int) -> Array:
        """Q repeated over the batch: [B, C, D]."""
        queries = self.query_embedding.astype(jnp.dtype(self.config.dtype))
        return jnp.broadcast_to(queries, (batch, *queries.shape))


class MemoryTokens(QueryTokens):
    """Query tokens, and the adapter by which stored memory re-enters the backbone.

    Attributes:
      max_groups: G, groups with an age embedding of their own.
      running_mean: whether an update averages with the memory before it, see `leave`.
      recalls: whether readers are reminded of what memory recalls, see `remind`.
      horizons: segments that each slot looks back.
      sketch: P, the first slots that also keep a part of items' vectors, see `note`.
    """

    max_groups: int
    running_mean: bool
    recalls: bool
    horizons: tuple[int, ...]
    sketch: int

    def setup(self):
        super().setup()
        dim = self.config.dim
        dtype = jnp.dtype(self.config.dtype)
        self.slot_embedding = self.param("slot_embedding", self.apart, (self.slots, dim))
        zeros = nn.initializers.zeros_init()
        self.age_embedding = self.param("age_embedding", zeros, (self.max_groups, dim))
        if self.running_mean:
            self.log_keep = self.param("log_keep", zeros, (self.slots,))
        if self.sketch:
            # A slot starts as what it sums, scored against the part it sums.
            kernel = jnp.eye(self.slots * dim, self.sketch * dim)
            start = nn.initializers.constant(OWN_GAIN)
            self.own_gain = self.param("own_gain", start, (self.sketch,))
        else:
            # Starts as the mean of the slots, which is already in the space of the item embeddings.
            kernel = jnp.tile(jnp.eye(dim) / self.slots, (self.slots, 1))
        self.recall_kernel = self.param("recall", lambda key: kernel)
        if self.recalls:
            start = nn.initializers.constant(RECALL_GAIN)
            self.recall_gain = self.param("recall_gain", start, ())
        # Stored memory has unit scale; events are embedded at 0.02 * sqrt(D) per element.
        scale = nn.initializers.normal(0.02 * dim**-0.5)
        if self.config.uses_identity_init:
            # A slot weighs a little more than an event in a copied sum; at unit scale the part that
            # all memories share drowns the recent events.
            scale = scaled_identity(0.25 * dim**-0.5)
        self.adapter = nn.Dense(dim, use_bias=False, kernel_init=scale, dtype=dtype)
        self.norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=jnp.float32)

    def __call__(self, batch: int) -> Array:
        self.enter(jnp.zeros((batch, self.slots, self.config.dim)))
        return self.queries(batch)

    def enter(self, memory: Array) -> Array:
        """Stored memory [B, G * C, D] (float32) to tokens of the same shape in the compute dtype."""
        groups = memory.shape[1] // self.slots
        # Age 0 is the newest group, which stands last; ages beyond the table share its last row.
        age = jnp.minimum(jnp.arange(groups)[::-1], self.max_groups - 1)
        place = jnp.tile(self.slot_embedding, (groups, 1))
        place = place + jnp.repeat(self.age_embedding[age], self.slots, axis=0)
        return self.adapter(memory) * self.config.dim**0.5 + place.astype(self.config.dtype)

    def recall(self, memory: Array) -> Array:
        """What memory alone expects next, in the space of item vectors: float32 [..., G * C, D] ->
        [..., W], the sum over groups; nothing for a memory of zeros."""
        groups = memory.reshape(*memory.shape[:-2], -1, self.slots * self.config.dim)
        return jnp.sum(groups, axis=-2) @ self.recall_kernel

    def remind(self, vectors: Array, state: State) -> Array:
        """Outputs of a reader [B, ..., D] plus what its memory recalls: a residual past the backbone,
        [B, ..., W].

        A memory token is one of thirty that a reader attends to, and what it knows must survive every
        layer; this path is open from the first step, to the reader and to the writer.
        """
        if not self.recalls:
            return vectors
        groups = jnp.maximum(state.groups, 1).astype(jnp.float32)
        recalled = self.recall(state.memory) / groups[:, None]
        recalled = (self.recall_gain * recalled).astype(vectors.dtype)
        recalled = recalled.reshape(-1, *(1,) * (vectors.ndim - 2), recalled.shape[-1])
        return widen(vectors, recalled.shape[-1]) + recalled

    def note(self, outputs: Array, sketch: Array) -> Array:
        """Outputs at Q [..., C, D] with a sketch [..., P, D] in the first P of them: float32.

        What no layer has mixed reaches memory as it is; what the backbone says is added to it.
        """
        outputs = outputs.astype(jnp.float32)
        noted = self.own_gain[:, None] * outputs[..., : self.sketch, :] + sketch
        return jnp.concatenate([noted, outputs[..., self.sketch :, :]], axis=-2)

    def leave(self, outputs: Array, state: State | None = None) -> Array:
        """Outputs at the queries [..., C, D] to stored memory: layer-normed, float32.

        The norm (no affine) keeps the scale of the memory fixed however often it is updated, gives
        L_con a unit to be measured in, and suits a quantised store.

        With `running_mean` and the `state` before an update, m_k = LN(o_k + g_c * k * m_{k-1}) for a
        memory of k segments and a learned g_c > 0 per slot (1 at first): the running mean of what the
        updates say. An error of one update fades as 1/k instead of being carried on in full. A slot
        with a horizon of H segments counts at most H - 1 of them, and so forgets older ones.
        """
        if state is None or not self.running_mean:
            return self.norm(outputs)
        before = jnp.minimum(state.segments[:, None], jnp.asarray(self.horizons) - 1)
        gain = jnp.exp(self.log_keep) * before.astype(jnp.float32)
        newest = state.memory[:, -self.slots :]
        return self.norm(outputs.astype(jnp.float32) + gain[..., None] * newest)


def fold(state: State, memory: Array, valid: Array) -> State:
    """M_k from M_{k-1} and m_k: the one place where overwrite and append differ (by G alone).

    The newest group enters on the right and the oldest of G falls off on the left: with G = 1 that is
    overwrite, otherwise append. Rows whose `valid` is False keep their state bit for bit.

    Args:
      state: memory [B, G * C, D].
      memory: m_k, [B, C, D].
      valid: bool [B].
    """
    slots = memory.shape[1]
    capacity = state.memory.shape[1] // slots
    folded = jnp.concatenate([state.memory[:, slots:], memory.astype(state.memory.dtype)], axis=1)
    groups = jnp.minimum(state.groups + 1, capacity)
    return State(
        jnp.where(valid[:, None, None], folded, state.memory),
        jnp.where(valid, groups, state.groups),
        jnp.where(valid, state.segments + 1, state.segments),
    )
