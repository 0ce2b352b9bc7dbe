"""Compute a store of memories from prepared histories, for a new checkpoint or another format.

The result equals what a stream of the same events leaves: every archived segment updates the memory, in
order and in the stored format, and the newest events are pending. The old store is not touched and can
serve meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.compute import batches
from rec2pm_jax.stream.compute.histories import compute_users
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import MAINTENANCE, Store, is_storable, open_store
from rec2pm_jax.stream.users.mutable_user import MutableUser

USERS_PER_COMMIT = 4 * batches.MAX_BATCH
_SOURCE, _COMPLETE = "rebuilt_from", "rebuilt"  # keys of the store's metadata


class RebuildReport(NamedTuple):
    """What a rebuilt store holds.

    Attributes:
      users, events, updates: of the whole store.
      found: users that a stopped call had already written.
      left_out: users whose ids are too long for a store.
      bookkeeping_bytes: of the seen items of all users, which count apart from the memories.
    """

    users: int
    events: int
    updates: int
    found: int
    left_out: int
    bookkeeping_bytes: int


@contextlib.contextmanager
def open_new_store(address: str) -> Iterator[Store]:
    """Open a store to be filled, so that its final name never refers to an incomplete one.

    Args:
      address: a directory, which is written as ADDRESS.building and renamed when the block ends
        without an error; or redis://HOST:PORT/NUMBER, which is written in place.

    Raises:
      UserError: the directory exists already, or the store cannot be opened or renamed.
    """
    if "://" in address:
        with contextlib.closing(open_store(address, MAINTENANCE)) as store:
            yield store
        return
    _check_unused(address)
    building = f"{address.rstrip('/')}.building"
    with contextlib.closing(open_store(building, MAINTENANCE)) as store:
        _check_unused(address)  # the rebuild that had the lock may have finished
        yield store
        try:  # while the lock is held: no other process writes to a directory that moves
            os.rename(building, address)
        except OSError as error:
            raise UserError(
                f"Cannot rename {building} to {address}: {error.strerror}. Is it in use by another "
                "process? The rebuilt store is complete: move it yourself."
            ) from error


def is_rebuilt(store: Store) -> bool:
    """Return whether a rebuild made the store, so that it holds the users of a dataset.

    Raises:
      UserError: the rebuild has not finished.
    """
    metadata = store.metadata()
    if _SOURCE in metadata and _COMPLETE not in metadata:
        raise UserError(
            "The rebuild of this --store has not finished: run launch.rebuild_memory again with the "
            "same flags, it resumes."
        )
    return _COMPLETE in metadata


def _check_unused(address: str) -> None:
    if os.path.lexists(address):
        raise UserError(
            f"--output={address} is there already: choose another name for the new store; the old "
            "one continues to serve."
        )


def rebuild(
    recommender: Recommender,
    dataset: Dataset,
    store: Store,
    options: EngineOptions,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RebuildReport:
    """Fill a store with the state of every user of a dataset; resume if it was stopped.

    Users are committed in groups, so a user in the store is complete. Their states have no watermark:
    a stream resumes after the newest prepared event of each user, by time.

    Args:
      recommender: of the new checkpoint.
      store: a new one, or one that a stopped call left.
      options: those that the store will be served with; `memory` and `worker` matter.
      progress: called with (updates done, updates in total), those of a stopped call included.

    Raises:
      UserError: the store holds states of another model or format, was begun from other data or by a
        stream, or cannot be written.
    """
    engine = Engine(recommender, store, options)
    record_format = engine.record_format
    order = np.argsort(dataset.lengths, kind="stable")  # users of one length are updated together
    names = [dataset.user(int(index)) for index in order]
    fits = np.array([is_storable(name) for name in names])
    updates = np.where(fits, recommender.method.plan(dataset.lengths[order]).updates, 0)
    total = int(updates.sum())
    complete = _check_source(store, dataset)
    found = done = bookkeeping = 0
    for begin in range(0, len(order), USERS_PER_COMMIT):
        rows = begin + np.flatnonzero(fits[begin : begin + USERS_PER_COMMIT])
        stored = store.get([names[row] for row in rows])
        missing = rows[:0] if complete else rows[[record is None for record in stored]]
        if options.seen != "none":
            there = zip((names[row] for row in rows), stored, strict=True)
            known = (record_format.decode(n, record) for n, record in there if record is not None)
            bookkeeping += _count_seen_bytes(known)
        if len(missing):
            sequences = [dataset.sequence(int(order[row])) for row in missing]
            users = compute_users(engine.recommender, record_format, sequences, dataset.time_origin)
            bookkeeping += _count_seen_bytes(users)
            named = dict(zip((names[row] for row in missing), users, strict=True))
            records, states = record_format.encode_changed(named)
            store.put(records, {}, states)
        found += len(rows) - len(missing)
        done += int(updates[rows].sum())
        progress(done, total)
    store.put({}, {_COMPLETE: b"1"})
    events = int(dataset.lengths[order][fits].sum())
    return RebuildReport(int(fits.sum()), events, total, found, int((~fits).sum()), bookkeeping)


def _count_seen_bytes(users: Iterable[MutableUser | None]) -> int:
    return sum(user.seen.nbytes for user in users if user is not None and user.seen is not None)


def _check_source(store: Store, dataset: Dataset) -> bool:
    """Mark a new store as made of this dataset, or check that it is.

    Returns:
      Whether the store is complete. Then nothing is added, since users may have been deleted.

    Raises:
      UserError: the store was begun from other data, or by a stream.
    """
    metadata = store.metadata()
    source = metadata.get(_SOURCE)
    if source is None:
        if next(iter(store.items()), None) is not None:
            raise UserError(
                "--output holds users that a stream left there; rebuild memories in another store."
            )
        store.put({}, {_SOURCE: dataset.content_hash.encode()})
    elif source.decode() != dataset.content_hash:
        raise UserError(
            f"The rebuild in --output was begun from data with content hash {source.decode()}, and "
            f"{dataset.path} has {dataset.content_hash}: remove it and start again, or pass the "
            "--data it was begun with."
        )
    return _COMPLETE in metadata
