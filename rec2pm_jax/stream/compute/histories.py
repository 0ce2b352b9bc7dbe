"""States of users from whole histories, as a stream of the same events leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import jax
import numpy as np

from rec2pm_jax.data.dataset import UserSequence
from rec2pm_jax.stream.compute import batches, compiled
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.record import RecordFormat
from rec2pm_jax.stream.users.mutable_user import MutableUser
from rec2pm_jax.stream.users.pending import PendingEvents
from rec2pm_jax.stream.users.seen import SeenItems
from rec2pm_jax.typing import Array, Events, State


def compute_known_users(
    recommender: Recommender, record_format: RecordFormat, names: Sequence[str]
) -> dict[str, MutableUser]:
    """Return those of the named users that the recommender's dataset has, with their events there.

    Args:
      record_format: of the store.
      names: raw ids.
    """
    dataset = recommender.dataset
    if dataset is None:
        return {}
    indices = {name: dataset.user_index(name) for name in names}
    sequences = {name: dataset.sequence(i) for name, i in indices.items() if i is not None}
    if not sequences:
        return {}
    origin = dataset.time_origin
    users = compute_users(recommender, record_format, list(sequences.values()), origin)
    return dict(zip(sequences, users, strict=True))


def compute_users(
    recommender: Recommender,
    record_format: RecordFormat,
    sequences: list[UserSequence],
    time_origin: int,
    *,
    one_pass: bool = False,
) -> list[MutableUser]:
    """Return users with given histories, as a stream holds them.

    Args:
      record_format: of the store.
      sequences: a history per user.
      time_origin: seconds since 1970 of time 0 of the histories; that of the users is the
        recommender's.
      one_pass: make the memories by `Method.compress`, and not by one update after the other.
    """
    method, catalogue = recommender.method, recommender.catalogue
    histories = [catalogue.encode_sequence(s, time_origin) for s in sequences]
    plan = method.plan(np.array([len(s.ids) for s in sequences]))
    fold = compress_histories if one_pass else fold_histories
    states, encoded = fold(recommender, record_format, histories)

    users = []
    for row, (sequence, events) in enumerate(zip(sequences, histories, strict=True)):
        user = record_format.new_user()
        user.events = len(sequence.ids)
        if sequence.times is not None:
            user.last_time = int(sequence.times[-1]) + time_origin
        if user.seen is not None:
            user.seen = SeenItems.of_sequence(sequence, time_origin, user.seen.detailed)
        user.groups, user.segments = int(states.groups[row]), int(states.segments[row])
        user.memory = encoded[row].tobytes() if user.segments else None
        user.state_changed = user.segments > 0
        user.pending = _encode_events(events, int(plan.start[row]))
        users.append(user)
    return users


def fold_histories(
    recommender: Recommender, record_format: RecordFormat, histories: list[Events]
) -> tuple[State, np.ndarray]:
    """Make memories by one update after the other, each rounded as a store keeps it.

    Args:
      histories: all events of each user, numpy fields int32 [n].

    Returns:
      (states, numpy, U rows; the same encoded, uint8 [U, bytes]).
    """
    method, form = recommender.method, record_format.states
    size = method.config.data.segment
    plan = method.plan(np.array([len(events.ids) for events in histories]))
    states = _empty_states(recommender, len(histories))
    encoded = form.encode(states)
    for turn in range(int(plan.updates.max())):  # the next segment of every user that has one
        rows = np.flatnonzero(plan.updates > turn)
        begin, end = turn * size, (turn + 1) * size
        active = [histories[row] for row in rows]
        segment = jax.tree.map(lambda *x, b=begin, e=end: np.stack([f[b:e] for f in x]), *active)
        next_time = None
        if segment.times is not None:  # R >= 1: an event follows each archived segment
            next_time = np.array([events.times[end] for events in active], np.int32)  # type: ignore[index]
        old = jax.tree.map(lambda x, r=rows: x[r], states)
        new = batches.update_memories(method, recommender.params, old, segment, next_time)
        encoded[rows] = form.encode(new)
        memory, exact = form.decode(encoded[rows])  # as the next update reads it from a store
        new = new._replace(memory=cast(Array, memory), exact=exact)
        for out, leaf in zip(jax.tree.leaves(states), jax.tree.leaves(new), strict=True):
            out[rows] = leaf
    return states, encoded


def compress_histories(
    recommender: Recommender, record_format: RecordFormat, histories: list[Events]
) -> tuple[State, np.ndarray]:
    """Do as `fold_histories`, but make each memory in one pass over the whole history."""
    method, size = recommender.method, recommender.method.config.data.segment
    updates = method.plan(np.array([len(events.ids) for events in histories])).updates
    states = _empty_states(recommender, len(histories))
    # The segments of a pass are padded to a power of two, so that few programs are compiled.
    width = np.array([batches.next_power_of_two(max(int(n), 1)) for n in updates])
    for segments in np.unique(width[updates > 0]):
        rows = np.flatnonzero((width == segments) & (updates > 0))
        for index, real in batches.iter_batches(rows):
            archived = [
                jax.tree.map(lambda f, n=updates[row] * size: f[:n], histories[row])
                for row in index
            ]
            events, valid = batches.pad_events(archived, int(segments) * size)
            after = None
            if events.times is not None:  # R >= 1: an event follows the last segment
                after = np.array([histories[r].times[updates[r] * size] for r in index], np.int32)
            new = compiled.compress(method, recommender.params, events, valid, after)
            for out, leaf in zip(jax.tree.leaves(states), jax.tree.leaves(new), strict=True):
                out[index[:real]] = np.asarray(leaf)[:real]
    return states, record_format.states.encode(states)


def _encode_events(events: Events, start: int) -> PendingEvents:
    """Return the events of a history from number `start` on."""
    gaps = None if events.times is None else np.diff(events.times, prepend=events.times[:1])
    fields = [f[start:] for f in (events.ids, gaps, events.types) if f is not None]
    return PendingEvents.of(np.stack(fields, axis=1))


def _empty_states(recommender: Recommender, count: int) -> State:
    empty = recommender.method.init_state(recommender.params, 1)
    return jax.tree.map(lambda x: np.repeat(np.asarray(x), count, axis=0), empty)
