"""Incremental reads: a session keeps keys and values, so that one more event costs one token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.windows import Window, query_times, window_of
from rec2pm_jax.nn.attention import KeyValues
from rec2pm_jax.nn.cache import InPlaceCache, Rows, rows_of, write
from rec2pm_jax.typing import Array, Events, Params, Readout, State

if TYPE_CHECKING:
    from rec2pm_jax.methods.method import Method


class Session(NamedTuple):
    """The state and events of a read, and the keys and values of all of its tokens.

    `state` and `events` are the arguments of `Method.read`, so a session can always be recomputed. It
    lives while a user is active; what is stored is still the state.

    Attributes:
      state: the memory that is read.
      events: fields int32 [B, read_length], the raw events, padded with zeros.
      lengths: int32 [B], how many events there are.
      kept: [layers, B, slots + read_length, H, d] each, keys and values of [M; events]. With
        times the row of the newest event is provisional: the next step recomputes it.
    """

    state: State
    events: Events
    lengths: Array
    kept: KeyValues


def open_session(
    method: Method,
    params: Params,
    state: State,
    events: Events,
    valid: Array,
    request_time: Array | None,
) -> tuple[Session, Readout]:
    """Implement `Method.open_session`."""
    window = window_of(events, valid, request_time)
    readout, kept = read_last(method, params, state, window)
    room = method.read_length - window.size
    events = jax.tree.map(lambda a: jnp.pad(jnp.where(valid, a, 0), ((0, 0), (0, room))), events)
    kept = jax.tree.map(lambda a: jnp.pad(a, ((0, 0),) * 2 + ((0, room), *((0, 0),) * 2)), kept)
    return Session(state, events, window.lengths, kept), readout


def step_session(
    method: Method, params: Params, session: Session, event: Events, request_time: Array | None
) -> tuple[Session, Readout]:
    """Implement `Method.step_session`."""
    at = jnp.arange(method.read_length, dtype=jnp.int32) == session.lengths[:, None]
    events = jax.tree.map(lambda old, new: jnp.where(at, new, old), session.events, event)
    grown = session._replace(events=events, lengths=session.lengths + 1)
    # The row before asks for the time of the new event, which is known only now.
    count = 2 if method.config.reads_times and method.read_length > 1 else 1
    kept, readout = read_newest(method, params, grown, count, request_time)
    return grown._replace(kept=kept), readout


def read_last(
    method: Method, params: Params, state: State, window: Window
) -> tuple[Readout, KeyValues]:
    """Return what is read after the last event, and keys and values of all tokens."""
    x, layout, cache = method.memory.read_inputs(params, state, window)
    last = Rows(layout.num_slots + jnp.maximum(window.lengths - 1, 0), 1)
    outputs, own = method.network.run(params, x, layout, cache=cache, wanted=last, unroll=True)
    if cache is not None:
        own = KeyValues(*(jnp.concatenate(both, 2) for both in zip(cache, own, strict=True)))
    vectors = outputs[:, 0].astype(jnp.float32)
    return method.memory.readout(params, state, window, vectors), own


def read_newest(
    method: Method, params: Params, session: Session, count: int, request_time: Array | None
) -> tuple[KeyValues, Readout]:
    """Run the rows of the newest `count` events.

    Returns:
      (keys and values of all tokens, what is read after the newest event).
    """
    state, events, lengths, kept = session
    window = Window(events, lengths, *query_times(events.times, lengths, request_time))
    layout = method.memory.read_inputs(params, state, window).layout
    first = jnp.maximum(lengths - count, 0)
    places = first[:, None] + jnp.arange(count, dtype=jnp.int32)
    x = method.network.embed(params, window.take(places), method.memory.positions(state, places))
    first = first + layout.num_slots
    rows = rows_of(layout, Rows(first, count))
    outputs, own = method.network.run(params, x, rows, cache=InPlaceCache(kept, first), unroll=True)
    last = jnp.maximum(lengths - places[:, 0] - 1, 0)
    vectors = jnp.take_along_axis(outputs, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    readout = method.memory.readout(params, state, window, vectors)
    # Compiled code cannot raise: a step too many must not look like an answer.
    overflow = lengths > method.read_length
    vectors = jnp.where(overflow[:, None], jnp.nan, readout.vectors)
    return write(kept, own, first, axis=2), readout._replace(vectors=vectors)


def check_room(session: Session) -> None:
    """Check that each user of a session can take another event; call it outside of jit.

    Raises:
      UserError: a user has no room; the message names the rows.
    """
    capacity = session.events.ids.shape[1]
    full = jnp.flatnonzero(session.lengths >= capacity)
    if len(full):
        raise UserError(
            f"The sessions of rows {full.tolist()} are full ({capacity} events): fold their first "
            "segment by `update` and open them again with the events that are left."
        )
