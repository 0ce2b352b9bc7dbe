"""Stores in tests: all that they hold, and their users."""

from __future__ import annotations

import threading
from typing import NamedTuple

from rec2pm_jax.stream.stores.base import Store
from rec2pm_jax.stream.stores.reading import read_states
from rec2pm_jax.stream.stores.record import RecordFormat
from rec2pm_jax.stream.users.mutable_user import MutableUser


class Contents(NamedTuple):
    """Records and states of a store, by user id."""

    records: dict[str, bytes]
    states: dict[str, bytes]


def contents(store: Store) -> Contents:
    """Return what a store holds of all users."""
    records = dict(store.items())
    states = zip(records, store.get_states(list(records)), strict=True)
    return Contents(records, {name: state for name, state in states if state is not None})


def read_users(store: Store, form: RecordFormat) -> dict[str, MutableUser]:
    """Return all users of a store with their memories; none has expired."""
    users = {}
    for name, record in store.items():
        user = form.decode(name, record)
        assert user is not None
        users[name] = user
    read_states(store, form, users)
    return users


class Connection:
    """A process's connection to a store; what a dead process writes never arrives."""

    def __init__(self, store):
        self._store, self._lock, self._dead = store, threading.Lock(), False

    def __getattr__(self, name):
        return getattr(self._store, name)

    def put(self, *contents):
        with self._lock:
            if not self._dead:
                self._store.put(*contents)

    def die(self):
        with self._lock:
            self._dead = True
