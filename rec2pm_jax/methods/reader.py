"""What all methods share: reading [M; recent events], whole or one event at a time."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.network import Network
from rec2pm_jax.nn.attention import KeyValues, Layout
from rec2pm_jax.nn.cache import Rows, rows_of, write
from rec2pm_jax.typing import Array, Events, Params, State


class Session(NamedTuple):
    """What makes the next read of some users cheap: the tokens they have read, keys and values kept.

    `state` and `events` are those a `read` would be given, so that everything else can be made again.
    A session is for the time a user is active; what is stored is still the state.

    Attributes:
      state: the memory that is read.
      events: fields int32 [B, read_length], the raw events, zero where there is none yet.
      lengths: int32 [B], how many there are.
      kept: [layers, B, slots + read_length, H, d] each, keys and values of [M; events]. With a time
        bias the row of the newest event is provisional: made again when the next event has come.
    """

    state: State
    events: Events
    lengths: Array
    kept: KeyValues


class Context(NamedTuple):
    """[M; recent events] as the backbone takes it, see `Backbone.__call__`.

    Attributes:
      x: tokens [B, rows, D]; layout; kept: tokens of M that are kept from earlier passes, or None.
    """

    x: Array
    layout: Layout
    kept: KeyValues | None


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads what a subclass's `_context(params, state, events, lengths, row_times)` lays out.

    Methods are equal, and share compiled functions, when their fields are.
    """

    config: Config
    num_items: int

    @property
    def read_length(self) -> int:
        return self.config.data.read_length

    @cached_property
    def network(self) -> Network:
        return Network(self.config, self.num_items, self.read_length)

    def score(self, params: Params, vectors: Array, catalogue: Array | None = None) -> Array:
        return self.network.score(params, vectors, catalogue)

    def best(
        self, params: Params, vectors: Array, k: int, catalogue: Array | None = None
    ) -> tuple[Array, Array]:
        return self.network.best(params, vectors, k, catalogue)

    def catalogue(self, params: Params) -> Array:
        return self.network.catalogue(params)

    def _context(self, params, state: State, events: Events, lengths, row_times) -> Context:
        raise NotImplementedError

    def _finish(self, params, state: State, events: Events, lengths, vectors: Array) -> Array:
        """What scores the catalogue, [..., W], of the backbone's outputs after the last of `lengths`
        events [B, D] or after each [B, N, D]."""
        return vectors

    def read_all(self, params, state, events: Events, valid, request_time=None) -> Array:
        lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
        row_times = layouts.query_times(events.times, lengths, request_time)
        context = self._context(params, state, events, lengths, row_times)
        outputs, _ = self.network.run_cached(params, *context, keep=0)
        outputs = outputs[:, -events.ids.shape[1] :].astype(jnp.float32)
        return self._finish(params, state, events, lengths, outputs)

    def read(self, params, state, events: Events, valid, request_time=None) -> Array:
        lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
        return self._read_last(params, state, events, lengths, request_time)[0]

    # --- one event at a time ---

    def open_session(
        self, params, state, events: Events, valid, request_time=None
    ) -> tuple[Session, Array]:
        lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
        vectors, kept = self._read_last(params, state, events, lengths, request_time)
        room = self.read_length - events.ids.shape[1]
        events = jax.tree.map(
            lambda a: jnp.pad(jnp.where(valid, a, 0), ((0, 0), (0, room))), events
        )
        kept = jax.tree.map(lambda a: jnp.pad(a, ((0, 0),) * 2 + ((0, room), *((0, 0),) * 2)), kept)
        return Session(state, events, lengths, kept), vectors

    def step_session(
        self, params, session: Session, event: Events, request_time=None
    ) -> tuple[Session, Array]:
        at = jnp.arange(self.read_length, dtype=jnp.int32) == session.lengths[:, None]
        events = jax.tree.map(lambda old, new: jnp.where(at, new, old), session.events, event)
        grown = session._replace(events=events, lengths=session.lengths + 1)
        # With a time bias the row before asks for the time of the new event, which is known only now.
        again = self.config.model.relative_bias == "position_time" and self.read_length > 1
        kept, vectors = self._newest(params, grown, 2 if again else 1, request_time)
        return grown._replace(kept=kept), vectors

    def read_session(self, params, session: Session, request_time=None) -> Array:
        return self._newest(params, session, 1, request_time)[1]

    def _read_last(self, params, state, events, lengths, request_time) -> tuple[Array, KeyValues]:
        """[B, W] after the last event, and keys and values of all tokens."""
        row_times = layouts.query_times(events.times, lengths, request_time)
        x, layout, kept = self._context(params, state, events, lengths, row_times)
        last = layout.num_slots + jnp.maximum(lengths - 1, 0)
        outputs, own = self.network.serve(params, x, layout, kept, only=Rows(last, 1))
        if kept is not None:
            own = KeyValues(*(jnp.concatenate(both, 2) for both in zip(kept, own, strict=True)))
        vectors = outputs[:, 0].astype(jnp.float32)
        return self._finish(params, state, events, lengths, vectors), own

    def _newest(
        self, params, session: Session, count: int, request_time
    ) -> tuple[KeyValues, Array]:
        """Rows of the newest `count` events: they are kept, and [B, W] after the last of them."""
        state, events, lengths, kept = session
        row_times = layouts.query_times(events.times, lengths, request_time)
        layout = self._context(params, state, events, lengths, row_times).layout
        first = jnp.maximum(lengths - count, 0)
        places = first[:, None] + jnp.arange(count, dtype=jnp.int32)
        newest = jax.tree.map(lambda a: jnp.take_along_axis(a, places, axis=1), events)
        first = first + layout.num_slots
        x = self.network.embed(params, newest, places)
        rows = rows_of(layout, Rows(first, count))
        outputs, own = self.network.serve(params, x, rows, kept, written=first)
        vectors = last_valid(outputs, lengths - places[:, 0]).astype(jnp.float32)
        vectors = self._finish(params, state, events, lengths, vectors)
        # No exception can leave compiled code, and no wrong answer should.
        overflow = lengths > self.read_length
        vectors = jnp.where(overflow[:, None], jnp.nan, vectors)
        return write(kept, own, first, axis=2), vectors


def last_valid(outputs: Array, lengths: Array) -> Array:
    """The output after each row's last event: [B, N, D], int32 [B] -> [B, D]."""
    last = jnp.maximum(lengths - 1, 0)
    return jnp.take_along_axis(outputs, last[:, None, None], axis=1)[:, 0]


def check_room(session: Session) -> None:
    """Raises: UserError where a session cannot take another event (call it outside of jit)."""
    capacity = session.events.ids.shape[1]
    full = jnp.flatnonzero(session.lengths >= capacity)
    if len(full):
        raise UserError(
            f"The sessions of rows {full.tolist()} are full ({capacity} events): fold their first "
            "segment by `update` and open them again with the events that are left."
        )
