"""Compute a store of memories from prepared histories, for a new checkpoint or another format.

The result equals what a stream of the same events leaves: every archived segment updates the memory, in
order and in the stored format, and the newest events are pending. The old store is not touched and can
serve meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from rec2pm_jax.data.dataset import Dataset, UserSequence
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.codec import decode, encode
from rec2pm_jax.stream.compute import batches
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import MAX_USER_BYTES, Store, open_store
from rec2pm_jax.stream.stores.record import RecordFormat
from rec2pm_jax.stream.users.mutable_user import MutableUser

USERS_PER_COMMIT = 4 * batches.MAX_BATCH
_SOURCE, _COMPLETE = "rebuilt_from", "rebuilt"  # keys of the store's metadata


class RebuildReport(NamedTuple):
    """What a rebuilt store holds.

    Attributes:
      users, events, updates: of the whole store.
      found: users that a stopped call had already written.
      left_out: users whose ids are too long for a store.
    """

    users: int
    events: int
    updates: int
    found: int
    left_out: int


@contextlib.contextmanager
def open_new_store(address: str, writer: str) -> Iterator[Store]:
    """Open a store to be filled, so that its final name never refers to an incomplete one.

    Args:
      address: a directory, which is written as ADDRESS.building and renamed when the block ends
        without an error; or redis://HOST:PORT/NUMBER, which is written in place.
      writer: as `open_store` takes it.

    Raises:
      UserError: the directory exists already, or the store cannot be opened or renamed.
    """
    if "://" in address:
        with contextlib.closing(open_store(address, writer)) as store:
            yield store
        return
    if Path(address).exists():
        raise UserError(
            f"--output={address} is there already: choose another name for the new store; the old "
            "one continues to serve."
        )
    building = f"{address.rstrip('/')}.building"
    with contextlib.closing(open_store(building, writer)) as store:
        yield store
    try:
        os.rename(building, address)
    except OSError as error:
        raise UserError(f"Cannot rename {building} to {address}: {error.strerror}.") from error


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
    record_format = Engine(recommender, store, options).record_format
    order = np.argsort(dataset.lengths, kind="stable")  # users of one length are updated together
    names = [dataset.user(int(index)) for index in order]
    fits = np.array([len(name.encode()) <= MAX_USER_BYTES for name in names])
    updates = np.where(fits, recommender.method.plan(dataset.lengths[order]).updates, 0)
    total = int(updates.sum())
    complete = _check_source(store, dataset)
    found = done = 0
    for begin in range(0, len(order), USERS_PER_COMMIT):
        rows = begin + np.flatnonzero(fits[begin : begin + USERS_PER_COMMIT])
        missing = rows[:0]
        if not complete:
            stored = store.get([names[row] for row in rows])
            missing = rows[[record is None for record in stored]]
        if len(missing):
            sequences = [dataset.sequence(int(order[row])) for row in missing]
            users = compute_users(recommender, record_format, sequences, dataset.time_origin)
            named = zip((names[row] for row in missing), users, strict=True)
            store.put({name: record_format.encode(name, user) for name, user in named}, {})
        found += len(rows) - len(missing)
        done += int(updates[rows].sum())
        progress(done, total)
    store.put({}, {_COMPLETE: b"1"})
    events = int(dataset.lengths[order][fits].sum())
    return RebuildReport(int(fits.sum()), events, total, found, int((~fits).sum()))


def compute_users(
    recommender: Recommender,
    record_format: RecordFormat,
    sequences: list[UserSequence],
    time_origin: int,
) -> list[MutableUser]:
    """Return users with given histories, as a stream holds them.

    Args:
      record_format: of the store.
      sequences: a history per user.
      time_origin: seconds since 1970 of time 0 of the histories.
    """
    method, catalogue = recommender.method, recommender.catalogue
    size, kind, dim = method.config.data.segment, record_format.kind, record_format.dim
    histories = [catalogue.select_fields(s.ids, s.times, s.types) for s in sequences]
    plan = method.plan(np.array([len(s.ids) for s in sequences]))
    empty = method.init_state(recommender.params, 1)
    memory, groups, segments = (
        np.repeat(x, len(sequences), axis=0) for x in map(np.asarray, empty)
    )
    encoded = encode(memory, kind)
    for turn in range(int(plan.updates.max())):  # the next segment of every user that has one
        rows = np.flatnonzero(plan.updates > turn)
        begin, end = turn * size, (turn + 1) * size
        active = [histories[row] for row in rows]
        segment = jax.tree.map(lambda *x, b=begin, e=end: np.stack([f[b:e] for f in x]), *active)
        next_time = None
        if segment.times is not None:  # R >= 1: an event follows each archived segment
            next_time = np.array([events.times[end] for events in active], np.int32)  # type: ignore[index]
        old = batches.make_state(memory[rows], groups[rows], segments[rows])
        new = batches.update_memories(method, recommender.params, old, segment, next_time)
        encoded[rows] = encode(np.asarray(new.memory), kind)
        memory[rows] = decode(encoded[rows], kind, dim)
        groups[rows], segments[rows] = new.groups, new.segments

    users = []
    for row, (sequence, events) in enumerate(zip(sequences, histories, strict=True)):
        user = MutableUser()
        user.events = len(sequence.ids)
        if sequence.times is not None:
            user.last_time = int(sequence.times[-1]) + time_origin
        user.groups, user.segments = int(groups[row]), int(segments[row])
        user.memory = encoded[row].tobytes() if user.segments else None
        pending = np.stack([f[plan.start[row] :] for f in events if f is not None], axis=1)
        user.pending.frombytes(np.ascontiguousarray(pending, np.int32).tobytes())
        users.append(user)
    return users


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
