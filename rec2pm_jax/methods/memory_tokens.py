"""The parameters of a memory, and the maps between stored memory, tokens and outputs."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from rec2pm_jax.config import ModelConfig
from rec2pm_jax.nn.initializers import scaled_identity
from rec2pm_jax.nn.registry import uses_identity_init
from rec2pm_jax.typing import Array, State

RECALL_GAIN = 0.5  # initial weight of what is recalled, beside an output of the backbone


class QueryTokens(nn.Module):
    """The learnable query Q.

    Attributes:
      config: the model section of the configuration.
      slots: C.
    """

    config: ModelConfig
    slots: int

    def setup(self) -> None:
        shape = (self.slots, self.config.dim)
        self.query_embedding = self.param("query_embedding", self.distinct_init, shape)

    @property
    def distinct_init(self) -> nn.initializers.Initializer:
        """Initialiser of distinct slots, at the items' scale."""
        return nn.initializers.truncated_normal(self.config.dim**-0.5)

    def __call__(self, batch: int) -> Array:
        """Initialise all parameters; only `init` calls it."""
        return self.queries(batch)

    def queries(self, batch: int) -> Array:
        """Return Q repeated over the batch: [B, C, D]."""
        queries = self.query_embedding.astype(jnp.dtype(self.config.dtype))
        return jnp.broadcast_to(queries, (batch, *queries.shape))


class MemoryTokens(QueryTokens):
    """Query tokens, and the maps between stored memory, tokens and outputs.

    Attributes:
      max_groups: G, groups with an age embedding.
      plain: whether a memory is the outputs of its update alone, and read as tokens alone.
    """

    max_groups: int
    plain: bool

    def setup(self) -> None:
        super().setup()
        dim = self.config.dim
        dtype = jnp.dtype(self.config.dtype)
        self.slot_embedding = self.param("slot_embedding", self.distinct_init, (self.slots, dim))
        zeros = nn.initializers.zeros_init()
        self.age_embedding = self.param("age_embedding", zeros, (self.max_groups, dim))
        if not self.plain:
            self.log_keep = self.param("log_keep", zeros, (self.slots,))
        # Starts as the mean of the slots, which is already in the space of the item embeddings.
        kernel = jnp.tile(jnp.eye(dim) / self.slots, (self.slots, 1))
        self.recall_kernel = self.param("recall", lambda key: kernel)
        if not self.plain:
            start = nn.initializers.constant(RECALL_GAIN)
            self.recall_gain = self.param("recall_gain", start, ())
        # Stored memory has unit scale; events are embedded at 0.02 * sqrt(D) per element.
        scale = nn.initializers.normal(0.02 * dim**-0.5)
        if uses_identity_init(self.config):
            # A slot weighs a little more than an event in a copied sum. At unit scale the part that
            # all memories share would drown the recent events.
            scale = scaled_identity(0.25 * dim**-0.5)
        self.adapter = nn.Dense(dim, use_bias=False, kernel_init=scale, dtype=dtype)
        self.norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=jnp.float32)

    def __call__(self, batch: int) -> Array:
        self.to_tokens(jnp.zeros((batch, self.slots, self.config.dim)))
        return self.queries(batch)

    def to_tokens(self, memory: Array) -> Array:
        """Map stored memory [B, G * C, D] (float32) to tokens of the same shape, compute dtype."""
        groups = memory.shape[1] // self.slots
        # Age 0 is the newest group, which is the last; ages beyond the table share its last row.
        age = jnp.minimum(jnp.arange(groups)[::-1], self.max_groups - 1)
        place = jnp.tile(self.slot_embedding, (groups, 1))
        place = place + jnp.repeat(self.age_embedding[age], self.slots, axis=0)
        return self.adapter(memory) * self.config.dim**0.5 + place.astype(self.config.dtype)

    def recall_items(self, memory: Array) -> Array:
        """Return what memory alone expects next, in the space of item vectors.

        Args:
          memory: float32 [..., G * C, D].

        Returns:
          float32 [..., D], a linear map of each group, summed over groups; 0 for a memory of zeros.
        """
        groups = memory.reshape(*memory.shape[:-2], -1, self.slots * self.config.dim)
        return jnp.sum(groups, axis=-2) @ self.recall_kernel

    def add_recall(self, vectors: Array, state: State) -> Array:
        """Add what the memory recalls to a reader's outputs: [B, ..., D] -> [B, ..., D].

            y + gain * mean over groups of (W_recall [m_1; ..; m_C])

        A memory token is one of some thirty that a reader attends to, and what it carries must survive
        all layers. This path past the backbone is open from the first step.
        """
        if self.plain:
            return vectors
        groups = jnp.maximum(state.groups, 1).astype(jnp.float32)
        recalled = self.recall_items(state.memory) / groups[:, None]
        recalled = (self.recall_gain * recalled).astype(vectors.dtype)
        recalled = recalled.reshape(-1, *(1,) * (vectors.ndim - 2), recalled.shape[-1])
        return vectors + recalled

    def from_query_outputs(self, outputs: Array, state: State | None = None) -> Array:
        """Map the outputs at Q [..., C, D] to stored memory: layer-normed, float32.

        The norm (without affine part) keeps the scale of memory fixed over any number of updates. It
        gives L_con a unit, and makes memory easy to quantise.

        Unless it is `plain`, and with the `state` before an update,

            m_k = LN(o_k + g_c * k * m_{k-1})

        for a memory of k segments and a learned g_c > 0 per slot (1 at first): the running mean of the
        outputs o_1 .. o_k. The error of one update then fades as 1 / k.
        """
        if state is None or self.plain:
            return self.norm(outputs)
        gain = jnp.exp(self.log_keep) * state.segments[:, None].astype(jnp.float32)
        newest = state.memory[:, -self.slots :]
        return self.norm(outputs.astype(jnp.float32) + gain[..., None] * newest)
