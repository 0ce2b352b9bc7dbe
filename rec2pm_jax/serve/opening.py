"""Open what a service consists of, at its start and again when it changes to a new checkpoint."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve.journal import Journal, JournaledStore
from rec2pm_jax.serve.users import warm_up_users
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.live_items import LiveItems
from rec2pm_jax.stream.opening import ModelPaths, open_engine
from rec2pm_jax.stream.options import EngineOptions, Worker
from rec2pm_jax.stream.stores.base import MemoryStore, Store, open_existing_store, open_store


class Opened(NamedTuple):
    """A model on a store, ready to serve.

    Attributes:
      engine: compiled, and not behind the journal.
      items: its item table.
      address: of its store, symbolic links resolved; "" for none.
      replayed: events that were read from the journal.
    """

    engine: Engine
    items: LiveItems
    address: str
    replayed: int


def open_service(
    paths: ModelPaths,
    address: str,
    options: EngineOptions,
    journal: Journal | None,
    *,
    create: bool = True,
) -> Opened:
    """Load the checkpoint, open its store, and catch up with the journal.

    Args:
      address: of the store; "" keeps states in the process.
      create: whether a directory may be made into a store.

    Raises:
      UserError: the checkpoint or the store cannot be used, or they do not belong together. The store
        is closed then.
    """
    recommender = paths.load()
    address = resolve(address)
    with contextlib.ExitStack() as stack:
        store: Store = MemoryStore()
        if address:
            open_it = open_store if create else open_existing_store
            store = open_it(address, options.worker.name)
        stack.callback(store.close)
        if journal is not None:
            journaled: Store = JournaledStore(store, journal)  # type: ignore[assignment]
            store = journaled
        engine, items = open_engine(paths, recommender, store, options)
        engine.warm_up(together=True)
        warm_up_users(engine.recommender)
        replayed = 0 if journal is None else journal.replay(engine)
        stack.pop_all()
    return Opened(engine, items, address, replayed)


def resolve(address: str) -> str:
    """Return the address of a store with symbolic links resolved, as a link may change later."""
    return address if not address or "://" in address else os.path.realpath(address)


def check_events(events: str, journal: str, worker: Worker) -> None:
    """Raise UserError if a service cannot read a source beside HTTP.

    Args:
      events: what `--events` names, "" for nothing.
    """
    if not events:
        return
    if journal:
        raise UserError(
            "--journal is for a change to a new checkpoint while the service runs, which --events does "
            "not allow: leave one of them out, and start the service again for a new checkpoint."
        )
    if worker.count > 1 or (events.startswith("kafka://") and "group=" in events):
        raise UserError(
            f"--events={events} divides users by partition, and HTTP by --worker: a service that reads "
            "it must be the only one. Leave --worker and group= out, or run launch.stream beside it."
        )


def check_journal(journal: str, store: str) -> None:
    """Raise UserError if there is a journal without a store that knows its place in it."""
    if journal and not store:
        raise UserError(f"--journal={journal} needs --store, which keeps its place in the journal.")
