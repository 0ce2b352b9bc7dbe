"""States of users from whole histories, as a stream of the same events leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import jax
import numpy as np

from rec2pm_jax.data.dataset import UserSequence
from rec2pm_jax.stream.compute import batches
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.record import RecordFormat
from rec2pm_jax.stream.users.mutable_user import MutableUser
from rec2pm_jax.stream.users.seen import SeenItems
from rec2pm_jax.typing import Array


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
) -> list[MutableUser]:
    """Return users with given histories, as a stream holds them.

    Args:
      record_format: of the store.
      sequences: a history per user.
      time_origin: seconds since 1970 of time 0 of the histories; that of the users is the
        recommender's.
    """
    method, catalogue = recommender.method, recommender.catalogue
    size, form = method.config.data.segment, record_format.states
    histories = [catalogue.encode_sequence(s, time_origin) for s in sequences]
    plan = method.plan(np.array([len(s.ids) for s in sequences]))
    empty = method.init_state(recommender.params, 1)
    states = jax.tree.map(lambda x: np.repeat(np.asarray(x), len(sequences), axis=0), empty)
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
        pending = np.stack([f[plan.start[row] :] for f in events if f is not None], axis=1)
        user.pending.frombytes(np.ascontiguousarray(pending, np.int32).tobytes())
        users.append(user)
    return users
