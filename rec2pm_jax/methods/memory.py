"""What a method stores for a user, and how it enters and leaves a pass."""

from __future__ import annotations

import abc
import dataclasses
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from rec2pm_jax.config import Config
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.exact_memory import empty_exact, event_clock, scan_exact, update_exact
from rec2pm_jax.methods.network import Network
from rec2pm_jax.methods.own_items import OwnItemScores
from rec2pm_jax.methods.segments import ReadPlan, plan_last, plan_memory
from rec2pm_jax.methods.windows import TrainingBatch, Window, up_to
from rec2pm_jax.nn.attention import KeyValues, Layout
from rec2pm_jax.typing import Array, Events, ExactMemory, Params, PRNGKey, Readout, State


class PassInputs(NamedTuple):
    """A pass as the backbone takes it, see `Network.run`.

    Attributes:
      x: tokens [B, rows, D].
      layout: who sees whom.
      cache: keys and values of the layout's first tokens, or None.
    """

    x: Array
    layout: Layout
    cache: KeyValues | None = None


@dataclasses.dataclass(frozen=True)
class Memory(abc.ABC):
    """Base of all memories: none, tokens, or keys and values.

    Attributes:
      network: the network that reads and writes the memory.
    """

    network: Network

    @property
    def config(self) -> Config:
        """The whole configuration."""
        return self.network.config

    @property
    def slots(self) -> int:
        """C, slots per group."""
        return self.config.method.slots

    @property
    def capacity(self) -> int:
        """G, the groups that a state holds: 1 overwrites, more append; 0 stores nothing."""
        method = self.config.method
        return method.max_groups if method.memory == "append" else 1

    @property
    def slot_dim(self) -> int:
        """Numbers that are stored per slot."""
        return self.config.model.dim

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype that memory is stored in."""
        return jnp.dtype(jnp.float32)

    @property
    def entries(self) -> int:
        """E, entries of the exact memory."""
        return self.config.method.exact_entries

    @property
    def read_length(self) -> int:
        """Most raw events that a read takes."""
        return self.config.data.read_length

    @cached_property
    def own_scores(self) -> OwnItemScores | None:
        """The module with what the user's own items score; None without repeat head and table."""
        config = self.config
        if not (config.model.repeat_head or self.entries):
            return None
        return OwnItemScores(
            config.model.repeat_head,
            self.entries,
            config.data.segment,
            config.uses_times,
            config.model.dim,
        )

    def init_params(self, rng: PRNGKey) -> Params:
        """Return the parameters that this memory adds to the network's, by their keys."""
        params, config = self.init_memory_params(rng), self.config
        if self.own_scores is not None:
            zero = jnp.zeros((1, 1), jnp.int32)
            window = Window(Events(zero, zero), zero[0], zero, zero > 0)

            def table(ids: Array) -> Array:
                return jnp.zeros((*ids.shape, config.model.dim))

            own = self.own_scores.init(rng, self.init_state(1), window, zero, table(zero), table)
            params["own_items"] = own["params"]
        return params

    def init_memory_params(self, rng: PRNGKey) -> Params:
        """Return the parameters of the preference memory, by their keys."""
        return {}

    def init_state(self, batch_size: int) -> State:
        """Return the state of users without archived events."""
        shape = (batch_size, self.capacity * self.slots, self.slot_dim)
        none = jnp.zeros(batch_size, jnp.int32)
        exact = empty_exact(batch_size, self.entries)
        return State(jnp.zeros(shape, self.dtype), none, none, exact)

    def plan(self, n: ArrayLike, max_segments: int = 0) -> ReadPlan:
        """Plan which events of histories of length `n` are folded, and which are read raw."""
        return plan_memory(n, self.config.data, max_segments)

    def positions(self, state: State, places: Array) -> Array:
        """Return the learned positions of raw events.

        Args:
          state: of the users.
          places: int32 [1 or B, N], numbers of the events among those that are read.
        """
        return places

    @abc.abstractmethod
    def read_inputs(self, params: Params, state: State, window: Window) -> PassInputs:
        """Return the pass that reads [M; recent events]."""

    def add_to_outputs(self, params: Params, state: State, window: Window, vectors: Array) -> Array:
        """Return the vectors that score the catalogue.

        Args:
          params: of the method.
          state: the memory that was read.
          window: the events that were read.
          vectors: outputs of the backbone after the last event [B, D], or after each [B, N, D].

        Returns:
          Of the same shape.
        """
        return vectors

    def readout(self, params: Params, state: State, window: Window, vectors: Array) -> Readout:
        """Return all that scoring needs; arguments as in `add_to_outputs`."""
        vectors = self.add_to_outputs(params, state, window, vectors).astype(jnp.float32)
        if self.own_scores is None:
            return Readout(vectors, None)
        rows, by_row = jnp.arange(window.size, dtype=jnp.int32)[None], vectors
        if vectors.ndim == 2:
            rows, by_row = jnp.maximum(window.lengths - 1, 0)[:, None], vectors[:, None]
        scores: Any = self.own_scores  # Flax does not say what `apply` returns
        items = partial(self.network.item_vectors, params)
        variables = {"params": params["own_items"]}
        own = scores.apply(variables, state, window, rows, by_row, items)
        if vectors.ndim == 2:
            own = own._replace(addends=own.addends[:, 0])
        return Readout(vectors, own)

    def remember(self, state: State, window: Window) -> ExactMemory:
        """Return the exact memory after a segment, given the state before it."""
        before = state.segments * self.config.data.segment
        clock = event_clock(window, before, self.config.uses_times)
        ids = up_to(window.events.ids, window.lengths)
        return update_exact(state.exact, ids, clock)

    def counts_before(self, cut: TrainingBatch) -> State:
        """Return the states before each segment of a batch, with their exact memories alone.

        Returns:
          B * K states; their preference memories are empty.
        """
        users, segments = cut.history.lengths.shape[0], self.config.data.segments
        state = self.init_state(users * segments)
        numbers = jnp.tile(jnp.arange(segments, dtype=jnp.int32), users)
        return state._replace(segments=numbers, exact=self.exact_before(cut.history))

    def exact_before(self, history: Window) -> ExactMemory:
        """Return the exact memory before each segment of whole histories: B * K rows."""
        config = self.config
        return scan_exact(history, self.entries, config.data.segment, config.uses_times)[1]

    def exact_after(self, history: Window) -> ExactMemory:
        """Return the exact memory after whole histories: B rows."""
        config = self.config
        return scan_exact(history, self.entries, config.data.segment, config.uses_times)[0]

    @abc.abstractmethod
    def new_memory(self, params: Params, state: State, window: Window) -> Array:
        """Return m_k [B, C, slot_dim] after a segment, given the state before it."""


@dataclasses.dataclass(frozen=True)
class NoMemory(Memory):
    """Nothing is stored: one causal pass reads the last `length` events.

    Attributes:
      length: the most events that a read takes.
      keeps_exact: whether events that are no longer read enter the exact memory.
    """

    length: int
    keeps_exact: bool = False

    @property
    def capacity(self) -> int:
        return 0

    @property
    def entries(self) -> int:
        return self.config.method.exact_entries if self.keeps_exact else 0

    @property
    def read_length(self) -> int:
        return self.length

    def plan(self, n: ArrayLike, max_segments: int = 0) -> ReadPlan:
        return super().plan(n, max_segments) if self.entries else plan_last(n, self.length)

    def read_inputs(self, params: Params, state: State, window: Window) -> PassInputs:
        layout = layouts.causal(window.size, window.row_times, window.events.times)
        positions = np.arange(window.size, dtype=np.int32)[None]
        return PassInputs(self.network.embed(params, window, positions), layout)

    def new_memory(self, params: Params, state: State, window: Window) -> Array:
        return state.memory


def fold(state: State, memory: Array, valid: Array) -> State:
    """Return M_k, given M_{k-1} and m_k: the only place where overwrite and append differ (by G).

    The newest group enters on the right and the oldest of G falls off on the left. With G = 1 that is
    overwrite, otherwise append. Rows that are not `valid` keep their state bit for bit.

    Args:
      state: memory [B, G * C, D].
      memory: m_k, [B, C, D].
      valid: bool [B].
    """
    slots = memory.shape[1]
    capacity = state.memory.shape[1] // max(slots, 1)  # 0 without a preference memory
    folded = jnp.concatenate([state.memory[:, slots:], memory.astype(state.memory.dtype)], axis=1)
    groups = jnp.minimum(state.groups + 1, capacity)
    return state._replace(
        memory=jnp.where(valid[:, None, None], folded, state.memory),
        groups=jnp.where(valid, groups, state.groups),
        segments=jnp.where(valid, state.segments + 1, state.segments),
    )
