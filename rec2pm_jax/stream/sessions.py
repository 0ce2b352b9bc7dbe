"""The hot cache: keys and values of users who ask often: a read costs one token per new event."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.sessions import Session
from rec2pm_jax.typing import Events, Params, State

MAX_STEPS = 8  # new events that are cheaper one at a time than all together


@functools.partial(jax.jit, static_argnums=(0, 1))
def _open(method, k, params, catalogue, state, events, valid, request_time):
    session, vectors = method.open_session(params, state, events, valid, request_time)
    return session, method.best(params, vectors, k, catalogue)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(method, params, session, event):
    times = None if event.times is None else event.times[:, 0]
    return method.step_session(params, session, event, times)[0]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _step_best(method, k, params, catalogue, session, event, request_time):
    session, vectors = method.step_session(params, session, event, request_time)
    return session, method.best(params, vectors, k, catalogue)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _best(method, k, params, catalogue, session, request_time):
    return method.best(params, method.read_session(params, session, request_time), k, catalogue)


class _Hot(NamedTuple):
    session: Session
    start: int  # events before the first one it reads
    events: int


class Sessions:
    """Open sessions of the users who asked last; the least recent leaves first.

    Attributes:
      hits, misses: reads answered from an open session, and reads that opened one.
    """

    def __init__(self, method: Method, params: Params, catalogue: jax.Array, capacity: int):
        self._method, self._params, self._catalogue = method, params, catalogue
        self._capacity = capacity
        self._hot: OrderedDict[str, _Hot] = OrderedDict()
        self.hits = self.misses = 0

    def best(
        self,
        user: str,
        start: int,
        memory: Callable[[], State],
        raw: Events,
        request_time: int | None,
        k: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items of one user with events; equal to `batches.best_items` up to rounding.

        Args:
          start: events that are not read raw any more; an open session with another start is of an
            older memory.
          memory: gives the state, one row; called when a session is opened.
          raw: fields int32 [n], the events from `start` on.
          k: see `batches.padded_k`.

        Returns:
          (scores float32 [k], ids int32 [k]), best first.
        """
        asked = None if request_time is None else np.array([request_time], np.int32)
        count = len(raw.ids)
        hot = self._hot.pop(user, None)
        new = count + start - hot.events if hot else 0
        tables = (self._params, self._catalogue)
        if hot and hot.start == start and 0 <= new <= MAX_STEPS:
            self.hits += 1
            session = hot.session
            for at in range(count - new, count - 1):
                session = _step(self._method, self._params, session, _one(raw, at))
            if new:
                event = _one(raw, count - 1)
                session, found = _step_best(self._method, k, *tables, session, event, asked)
            else:
                found = _best(self._method, k, *tables, session, asked)
        else:
            self.misses += 1
            width = self._method.read_length
            padded = jax.tree.map(lambda a: np.pad(a, (0, width - count))[None], raw)
            valid = np.arange(width)[None] < count
            session, found = _open(self._method, k, *tables, memory(), padded, valid, asked)
        if self._capacity:
            self._hot[user] = _Hot(session, start, start + count)
            if len(self._hot) > self._capacity:
                self._hot.popitem(last=False)
        scores, ids = found
        return np.asarray(scores)[0], np.asarray(ids)[0]


def _one(raw: Events, at: int) -> Events:
    return jax.tree.map(lambda a: a[None, at : at + 1], raw)
