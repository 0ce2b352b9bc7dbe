"""The interface of all methods. A method is a network, a memory and an objective; all are pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods import sessions
from rec2pm_jax.methods.memory import Memory, fold
from rec2pm_jax.methods.network import Network
from rec2pm_jax.methods.segments import ReadPlan
from rec2pm_jax.methods.sessions import Session
from rec2pm_jax.methods.windows import window_of
from rec2pm_jax.nn.catalogue.filters import NO_FILTER, ItemFilter
from rec2pm_jax.typing import Array, Batch, Events, Params, PRNGKey, Readout, State, Terms

Loss = Callable[["Method", Params, Batch, PRNGKey | None], Terms]
Compress = Callable[["Method", Params, Events, Array, Array | None], State]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to serve and train on users' histories.

    Everything that changes (parameters, states, keys) is an argument or a result. Methods with equal
    fields are equal and share compiled functions.

    Attributes:
      memory: what is stored per user, with the network that reads and writes it.
      loss_function: the objective, (method, params, batch, rng) -> terms.
      weights: (name, weight) of each loss term.
      compressor: one-pass compression of a whole history, or None.
    """

    memory: Memory
    loss_function: Loss
    weights: tuple[tuple[str, float], ...] = (("ar", 1.0),)
    compressor: Compress | None = None

    @property
    def network(self) -> Network:
        """The embedding, the backbone and the scoring."""
        return self.memory.network

    @property
    def config(self) -> Config:
        """The whole configuration."""
        return self.network.config

    @property
    def num_items(self) -> int:
        """Real items; the table has one more row, row 0, for padding."""
        return self.network.num_items

    @property
    def read_length(self) -> int:
        """Most raw events that `read` takes."""
        return self.memory.read_length

    @property
    def stores_memory(self) -> bool:
        """Whether the state of a user holds anything."""
        return self.memory.capacity > 0 or self.memory.entries > 0

    @property
    def memory_kind(self) -> str:
        """How a state follows a history: overwrite, append, or none."""
        return self.config.method.memory if self.stores_memory else "none"

    @property
    def spans_devices(self) -> bool:
        """Whether a call computes on several devices, which wait for each other."""
        return False

    @property
    def can_compress(self) -> bool:
        """Whether `compress` makes the memory of a whole history in one pass."""
        return self.compressor is not None

    # --- parameters and states ---

    def init(self, rng: PRNGKey) -> Params:
        """Return fresh parameters."""
        network_rng = memory_rng = rng
        if self.memory.capacity:
            network_rng, memory_rng = jax.random.split(rng)
        times = jnp.zeros((1, 1), jnp.int32)
        params = self.network.init(network_rng, layouts.causal(1, times, times))
        return params | self.memory.init_params(memory_rng)

    def init_state(self, params: Params, batch_size: int) -> State:
        """Return the state of `batch_size` users without archived events."""
        return self.memory.init_state(batch_size)

    def plan(self, n: ArrayLike, max_segments: int = 0) -> ReadPlan:
        """Plan which events of histories of length `n` are folded, and which are read raw."""
        return self.memory.plan(n, max_segments)

    # --- memory ---

    def update(
        self,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        next_time: Array | None = None,
    ) -> State:
        """Fold one segment into the state: the body of `lax.scan` at inference.

        Args:
          params: what `init` returned, or training made of it.
          state: of B users.
          events: fields [B, S].
          valid: bool [B, S], true on a prefix of each row. A row without valid events keeps its state
            bit for bit.
          next_time: int32 [B], seconds: the time of the event after the segment (there is one, as
            R >= 1). Only models that read times need it.

        Returns:
          The state after the segment, with the shapes and dtypes of `state`.
        """
        if not self.stores_memory:
            return state
        window = window_of(events, valid, next_time)
        memory = self.memory.new_memory(params, state, window)
        exact = self.memory.remember(state, window)
        return fold(state, memory, window.lengths > 0)._replace(exact=exact)

    def compress(
        self, params: Params, events: Events, valid: Array, next_time: Array | None = None
    ) -> State:
        """Make the memory of whole histories in one pass ("one-time"), with the weights of `update`.

        Args:
          params: as in `update`.
          events: fields [B, A], A a multiple of the segment length.
          valid: bool [B, A], a prefix of whole segments. A row without any gets an empty state.
          next_time: as in `update`.

        Raises:
          UserError: the method has no one-pass compression.
          ValueError: A is not a multiple of the segment length.
        """
        if self.compressor is None:
            raise UserError(
                f"config.method.name={self.config.method.name} has no one-pass compression; roll the "
                "memory forward by `update`."
            )
        return self.compressor(self, params, events, valid, next_time)

    # --- reading ---

    def read(
        self,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        request_time: Array | None = None,
    ) -> Readout:
        """Return what scores the catalogue after the last valid event: vectors float32 [B, D].

        Args:
          params: as in `update`.
          state: of B users.
          events: fields [B, N], N <= `read_length` raw events.
          valid: bool [B, N], a prefix of each row, at least one event.
          request_time: int32 [B], seconds; `windows.UNKNOWN_TIME`, or None for all users, if the time
            of the request is not known.
        """
        window = window_of(events, valid, request_time)
        return sessions.read_last(self, params, state, window)[0]

    def read_all(
        self,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        request_time: Array | None = None,
    ) -> Readout:
        """Do as `read` after each event: vectors float32 [B, N, D].

        `request_time` is that of the last valid event. The query time of each event before is the time
        of the event that follows.
        """
        window = window_of(events, valid, request_time)
        x, layout, cache = self.memory.read_inputs(params, state, window)
        outputs, _ = self.network.run(params, x, layout, cache=cache)
        outputs = outputs[:, -window.size :].astype(jnp.float32)
        return self.memory.readout(params, state, window, outputs)

    def open_session(
        self,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        request_time: Array | None = None,
    ) -> tuple[Session, Readout]:
        """Do as `read`, and return a session that makes the next reads cheap.

        Rows may also be without events; their vector means nothing then.

        Returns:
          (the session, what `read` returns).
        """
        return sessions.open_session(self, params, state, events, valid, request_time)

    def step_session(
        self, params: Params, session: Session, event: Events, request_time: Array | None = None
    ) -> tuple[Session, Readout]:
        """Read one more event of each user.

        It costs one token; two with times, as the row before asks for the time of this event.
        Donate the session, and it is changed in place. A session with `read_length` events has no room:
        `sessions.check_room` raises outside of jit, and a step too many returns NaN. A method with a
        memory then folds a segment, and the session is opened again with the other events; `full` and
        `recent` slide, so they open it again for each event.

        Args:
          params: as in `update`.
          session: of B users.
          event: fields [B, 1].
          request_time: int32 [B], seconds, see `read`.

        Returns:
          (the session after the event, what `read` returns after it).
        """
        return sessions.step_session(self, params, session, event, request_time)

    def read_session(
        self, params: Params, session: Session, request_time: Array | None = None
    ) -> Readout:
        """Return what `read` returns at another request time, without a new event."""
        return sessions.read_newest(self, params, session, 1, request_time)[1]

    # --- scoring ---

    def catalogue(self, params: Params) -> Array:
        """Return the item table prepared for scoring, float32 [V, D]."""
        return self.network.catalogue(params)

    def score(self, params: Params, readout: Readout, catalogue: Array | None = None) -> Array:
        """Return logits over the catalogue.

        Args:
          params: as in `update`.
          readout: of a read, vectors [..., D].
          catalogue: what `catalogue` returned. None: the table is prepared in every call.

        Returns:
          float32 [..., V]; the padding column is -inf.
        """
        return self.network.score(params, readout, catalogue)

    def best(
        self,
        params: Params,
        readout: Readout,
        k: int,
        catalogue: Array | None = None,
        rule: ItemFilter = NO_FILTER,
    ) -> tuple[Array, Array]:
        """Return the k highest scores and their items, without the logits of a large catalogue.

        Args:
          params: as in `update`.
          readout: of a read, vectors [B, D].
          k: items.
          catalogue: what `catalogue` returned. None: the table is prepared in every call.
          rule: which items may be returned. With candidates k is at most their number.

        Returns:
          (scores float32 [B, k], ids int32 [B, k]), best first, equal ones by id; -inf is no answer.
        """
        return self.network.best(params, readout, k, catalogue, rule)

    # --- training ---

    def loss(self, params: Params, batch: Batch, rng: PRNGKey | None) -> Terms:
        """Return the training losses as {name: (sum, weight)}.

        Args:
          params: as in `update`.
          batch: `ids` int32 [B, T + 1] with T = config.data.window: inputs are [:, :-1], next-item
            targets [:, 1:], padded on the right with 0. `times` and `types` likewise where the dataset
            has them, and `weights` float32 where only some types are targets. `index` int32 [B], the
            global example index.
          rng: key of dropout, negatives and the choice of memories; None switches them off.
        """
        return self.loss_function(self, params, batch, rng)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss term: the objective is sum_i weight_i * sum_i / weight_sum_i."""
        return dict(self.weights)
