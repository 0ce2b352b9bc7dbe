"""The interface every method implements. All functions are pure."""

from __future__ import annotations

from typing import Protocol

from rec2pm_jax.config import Config
from rec2pm_jax.methods.reader import Session
from rec2pm_jax.methods.segments import ReadPlan
from rec2pm_jax.typing import Array, Batch, Events, Params, PRNGKey, State, Terms


class Method(Protocol):
    """A way to serve a user's history: what is stored, how it is updated, read and trained.

    `config` and `num_items` (real items; the table has num_items + 1 rows, row 0 is padding) are
    static; everything else is an argument.
    """

    config: Config
    num_items: int

    def init(self, rng: PRNGKey) -> Params:
        """Fresh parameters."""

    def init_state(self, params: Params, batch_size: int) -> State:
        """The state of `batch_size` users without archived events."""

    def update(
        self,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        next_time: Array | None = None,
    ) -> State:
        """Folds one segment into the state (the body of `lax.scan` at inference).

        events: [B, S]; valid: bool [B, S], true on a prefix of each row. A row without valid events
        keeps its state bit for bit. next_time: int32 [B], the time of the event after the segment
        (there is one, as R >= 1), needed with a time bias only.
        """

    def read(
        self,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        request_time: Array | None = None,
    ) -> Array:
        """Returns float32 [B, W], the vector that scores the catalogue after the last valid event.

        events: [B, N], N <= read_length raw events; valid: bool [B, N], a prefix of each row, at least
        one event. request_time: int32 [B], needed with a time bias only.
        """

    def read_all(
        self,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        request_time: Array | None = None,
    ) -> Array:
        """Like `read`, after every event: float32 [B, N, W]."""

    def open_session(
        self,
        params: Params,
        state: State,
        events: Events,
        valid: Array,
        request_time: Array | None = None,
    ) -> tuple[Session, Array]:
        """`read` (same arguments, same [B, W]) that keeps what makes the next reads cheap.

        Rows may also have no event yet; their vector means nothing then.
        """

    def step_session(
        self, params: Params, session: Session, event: Events, request_time: Array | None = None
    ) -> tuple[Session, Array]:
        """Reads one more event of each user: the session after it, and what `read` returns after it.

        event: fields [B, 1]. Costs one token (two with a time bias: the row before asks for the time
        of this event). Donate the session, and it is changed in place.

        A session with `read_length` events has no room: `check_room` raises outside of jit, and a
        step too many returns NaN. Memory methods are due for an `update` then, and the session is
        opened again with the events that are left; `full` and `recent` slide, so they open it again
        for each event.
        """

    def read_session(
        self, params: Params, session: Session, request_time: Array | None = None
    ) -> Array:
        """What `read` returns at another `request_time`, without a new event: float32 [B, W]."""

    def score(self, params: Params, vectors: Array, catalogue: Array | None = None) -> Array:
        """Logits over the catalogue: [..., W] -> float32 [..., V]; the padding column is -inf.

        catalogue: what `catalogue` returns; without it the table is prepared in every call.
        """

    def catalogue(self, params: Params) -> Array:
        """The item table prepared for scoring, float32 [V, W]."""

    def best(
        self, params: Params, vectors: Array, k: int, catalogue: Array | None = None
    ) -> tuple[Array, Array]:
        """The k highest scores float32 [B, k] of vectors [B, W] and their ids int32 [B, k], best
        first, of equal scores the lower id first; without the logits of a large catalogue.

        catalogue: the item table as `to_item_vectors` returns it, where many calls share it.
        """

    def plan(self, n, max_segments: int = 0) -> ReadPlan:
        """Which events of histories of length `n` are folded and which are read."""

    @property
    def read_length(self) -> int:
        """Most events `read` is given."""

    def loss(
        self,
        params: Params,
        batch: Batch,
        rng: PRNGKey | None,
        *,
        step: Array,
        target_params: Params | None = None,
    ) -> Terms:
        """Training losses as {name: (sum, weight)}; rng None switches dropout off.

        batch: `ids` int32 [B, T + 1] with T = config.data.window (inputs are [:, :-1], next-item
        targets [:, 1:], padded on the right with 0), `times` and `types` likewise where the dataset
        has them, and `index` int32 [B], the global example index.
        """

    def loss_weights(self, step: Array) -> dict[str, Array]:
        """Coefficient of each loss term at `step`; the objective is sum_i c_i * sum_i / weight_i."""
