"""A store of memories made anew from prepared histories, for a new checkpoint or another format.

What a stream would have left: every archived segment is folded in order, memory is kept in its format
between updates, the newest events wait. The old store is not touched and can go on serving.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from rec2pm_jax.data.dataset import Dataset, UserSequence
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.codec import decode, encode
from rec2pm_jax.stream import batches
from rec2pm_jax.stream.engine import Engine, Options
from rec2pm_jax.stream.mutable_user import MutableUser
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.record import RecordFormat
from rec2pm_jax.stream.store import MAX_USER_BYTES, Store
from rec2pm_jax.typing import Events, State

USERS = 4 * batches.MAX_BATCH  # of a commit
_SOURCE, _COMPLETE = "rebuilt_from", "rebuilt"


class Rebuilt(NamedTuple):
    """Attributes: users, events and memory updates of the whole store; users found there at the
    start; users whose ids are too long for a store."""

    users: int
    events: int
    updates: int
    found: int
    left_out: int


def rebuild(
    recommender: Recommender,
    dataset: Dataset,
    store: Store,
    options: Options,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rebuilt:
    """Fills `store` with the state of every user of `dataset`; goes on where it was stopped.

    Users are committed some at a time, so a user who is there is complete. States have no watermark:
    a stream goes on after the newest prepared event of each user, by time.

    Args:
      recommender: of the new checkpoint.
      options: those the store will be served with (`memory` and `worker` count here).
      progress: called with (segments folded, segments in all), also those found at the start.

    Raises:
      UserError: the store holds states of another model or format, was begun from other data, or
        cannot be written.
    """
    engine = Engine(recommender, store, options)
    order = np.argsort(dataset.lengths, kind="stable")  # a batch folds users of one length
    names = [dataset.user(int(index)) for index in order]
    fits = np.array([len(name.encode()) <= MAX_USER_BYTES for name in names])
    updates = np.where(fits, recommender.method.plan(dataset.lengths[order]).updates, 0)
    total = int(updates.sum())
    complete = _is_complete(store, dataset)
    found = done = 0
    for begin in range(0, len(order), USERS):
        rows = begin + np.flatnonzero(fits[begin : begin + USERS])
        missing = rows[:0]
        if not complete:
            kept = store.get([names[row] for row in rows])
            missing = rows[[record is None for record in kept]]
        if len(missing):
            sequences = [dataset.sequence(int(order[row])) for row in missing]
            users = make_users(recommender, engine.form, sequences, dataset.time_origin)
            named = zip((names[row] for row in missing), users, strict=True)
            store.put({name: engine.form.encode(name, live) for name, live in named}, {})
        found += len(rows) - len(missing)
        done += int(updates[rows].sum())
        progress(done, total)
    store.put({}, {_COMPLETE: b"1"})
    events = int(dataset.lengths[order][fits].sum())
    return Rebuilt(int(fits.sum()), events, total, found, int((~fits).sum()))


def make_users(
    recommender: Recommender,
    form: RecordFormat,
    sequences: list[UserSequence],
    time_origin: int,
) -> list[MutableUser]:
    """Users with these histories, as a stream holds them."""
    method, catalogue = recommender.method, recommender.catalogue
    size = method.config.data.segment
    histories = [
        Events(
            s.ids,
            s.times if catalogue.uses_times else None,
            s.types if catalogue.uses_types else None,
        )
        for s in sequences
    ]
    plan = method.plan(np.array([len(s.ids) for s in sequences]))
    one = jax.tree.map(np.asarray, method.init_state(recommender.params, 1))
    states = jax.tree.map(lambda x: np.repeat(x, len(sequences), axis=0), one)
    encoded = encode(states.memory, form.kind)
    for turn in range(int(plan.updates.max())):
        rows = np.flatnonzero(plan.updates > turn)
        begin, end = turn * size, (turn + 1) * size
        due = [histories[row] for row in rows]
        segment = jax.tree.map(lambda *x, b=begin, e=end: np.stack([f[b:e] for f in x]), *due)
        next_time = None
        if segment.times is not None:  # R >= 1: an archived segment has an event after it
            next_time = np.array([events.times[end] for events in due], np.int32)
        old = State(*(leaf[rows] for leaf in states))
        new = batches.fold(method, recommender.params, old, segment, next_time)
        encoded[rows] = encode(new.memory, form.kind)
        states.memory[rows] = decode(encoded[rows], form.kind, form.dim)
        states.groups[rows], states.segments[rows] = new.groups, new.segments

    users = []
    for row, events in enumerate(histories):
        live = MutableUser()
        live.events = len(events.ids)
        if sequences[row].times is not None:
            live.last_time = int(sequences[row].times[-1]) + time_origin
        live.groups, live.segments = int(states.groups[row]), int(states.segments[row])
        live.memory = encoded[row].tobytes() if live.segments else None
        waiting = np.stack([f[plan.start[row] :] for f in events if f is not None], axis=1)
        live.pending.frombytes(np.ascontiguousarray(waiting, np.int32).tobytes())
        users.append(live)
    return users


def _is_complete(store: Store, dataset: Dataset) -> bool:
    """Whether an earlier call filled the store; a new store is marked as made of this dataset.

    A complete one is left alone: users may have been deleted since.

    Raises:
      UserError: the store was begun from other data, or by a stream.
    """
    marks = store.marks()
    begun = marks.get(_SOURCE)
    if begun is None:
        if next(iter(store.items()), None) is not None:
            raise UserError(
                "--output holds users that a stream left there; rebuild memories in another store."
            )
        store.put({}, {_SOURCE: dataset.content_hash.encode()})
    elif begun.decode() != dataset.content_hash:
        raise UserError(
            f"The rebuild in --output was begun from data with content hash {begun.decode()}, and "
            f"{dataset.path} has {dataset.content_hash}: remove it and start again, or pass the "
            "--data it was begun with."
        )
    return _COMPLETE in marks
