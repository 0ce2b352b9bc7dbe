"""Open sessions of users who ask often: a read then costs one token per new event."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.sessions import Session
from rec2pm_jax.stream.search import Asked
from rec2pm_jax.typing import Array, Events, Params, State

MAX_STEPS = 8  # so many new events are cheaper one at a time than in a new session

BestItems = tuple[Array, Array]  # scores float32 [B, k], ids int32 [B, k]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _open(
    method: Method,
    k: int,
    params: Params,
    catalogue: Array,
    state: State,
    events: Events,
    valid: Array,
    asked: Asked,
) -> tuple[Session, BestItems]:
    session, readout = method.open_session(params, state, events, valid, asked.time)
    return session, method.best(params, readout, k, catalogue, asked.rule)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(method: Method, params: Params, session: Session, event: Events) -> Session:
    times = None if event.times is None else event.times[:, 0]
    return method.step_session(params, session, event, times)[0]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _step_and_rank(
    method: Method,
    k: int,
    params: Params,
    catalogue: Array,
    session: Session,
    event: Events,
    asked: Asked,
) -> tuple[Session, BestItems]:
    session, readout = method.step_session(params, session, event, asked.time)
    return session, method.best(params, readout, k, catalogue, asked.rule)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rank(
    method: Method,
    k: int,
    params: Params,
    catalogue: Array,
    session: Session,
    asked: Asked,
) -> BestItems:
    readout = method.read_session(params, session, asked.time)
    return method.best(params, readout, k, catalogue, asked.rule)


class _OpenSession(NamedTuple):
    """Attributes:
    start: events before the first one that the session reads.
    events: events of the user in all.
    """

    session: Session
    start: int
    events: int

    def serves(self, start: int, count: int) -> bool:
        """Return whether it serves a read of `count` pending events from `start` on."""
        return self.start == start and 0 <= start + count - self.events <= MAX_STEPS


class SessionCache:
    """Open sessions of the users who asked last; the least recently used is dropped first.

    Attributes:
      hits: reads answered from an open session.
      misses: reads that opened one.
    """

    def __init__(self, method: Method, params: Params, catalogue: Array, capacity: int):
        """Start with no sessions.

        Args:
          catalogue: the item table, see `compiled.prepare_catalogue`.
          capacity: how many sessions are kept; 0 keeps none.
        """
        self._method, self._params, self._catalogue = method, params, catalogue
        self._capacity = capacity
        self._sessions: OrderedDict[str, _OpenSession] = OrderedDict()
        self.hits = self.misses = 0

    def replace_model(self, method: Method, params: Params, catalogue: Array) -> None:
        """Close all sessions, and continue with another model; arguments as for a new cache."""
        self._method, self._params, self._catalogue = method, params, catalogue
        self._sessions.clear()

    def clear(self) -> None:
        """Close all sessions."""
        self._sessions.clear()

    def serves(self, name: str, start: int, count: int) -> bool:
        """Return whether a user has an open session that serves a read; see `find_best`."""
        known = self._sessions.get(name)
        return known is not None and known.serves(start, count)

    def find_best(
        self,
        name: str,
        start: int,
        state: Callable[[], State],
        pending: Events,
        asked: Asked,
        k: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best items of one user with events; `batches.find_best` up to rounding.

        Args:
          name: the user's id.
          start: events of the user before the pending ones. An open session with another start has
            an older memory and is not used.
          state: returns the user's state, one row; called only if a session is opened.
          pending: the user's pending events, fields int32 [n].
          asked: the request, one row.
          k: how many items, see `batches.padded_k`; all candidates if the filter has some.

        Returns:
          (scores float32 [k], ids int32 [k]), best first.
        """
        if asked.rule.candidates is not None:
            k = asked.rule.candidates.shape[1]
        count = len(pending.ids)
        known = self._sessions.pop(name, None)
        tables = (self._params, self._catalogue)
        if known and known.serves(start, count):
            self.hits += 1
            new = start + count - known.events
            session = known.session
            for at in range(count - new, count - 1):
                session = _step(self._method, self._params, session, _event_at(pending, at))
            if new:
                event = _event_at(pending, count - 1)
                session, found = _step_and_rank(self._method, k, *tables, session, event, asked)
            else:
                found = _rank(self._method, k, *tables, session, asked)
        else:
            self.misses += 1
            width = self._method.read_length
            padded = jax.tree.map(lambda a: np.pad(a, (0, width - count))[None], pending)
            valid = np.arange(width)[None] < count
            session, found = _open(self._method, k, *tables, state(), padded, valid, asked)
        if self._capacity:
            self._sessions[name] = _OpenSession(session, start, start + count)
            if len(self._sessions) > self._capacity:
                self._sessions.popitem(last=False)
        scores, ids = found
        return np.asarray(scores)[0], np.asarray(ids)[0]


def _event_at(events: Events, at: int) -> Events:
    """Return one event of fields [n] as fields [1, 1]."""
    return jax.tree.map(lambda a: a[None, at : at + 1], events)
