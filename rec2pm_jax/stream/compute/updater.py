"""From users as they are held to arrays and back: stack, decode, update, encode, install."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.state_format import state_format
from rec2pm_jax.stream.compute import batches
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.record import RecordFormat
from rec2pm_jax.stream.users.mutable_user import MutableUser
from rec2pm_jax.stream.users.user_state import UserState
from rec2pm_jax.typing import Events, State


class UpdateInputs(NamedTuple):
    """Copies of what an update of several users needs.

    Attributes:
      states: numpy, a row per user.
      events: numpy fields int32 [U, S + 1], the oldest pending segment and the event after it.
    """

    states: State
    events: Events


class UpdatedStates(NamedTuple):
    """States of several users after an update.

    Attributes:
      memories: encoded.
      groups, segments: as in `State`.
    """

    memories: list[bytes]
    groups: list[int]
    segments: list[int]


class MemoryUpdater:
    """Updates memories of one model in one format.

    Attributes:
      max_pending: number of pending events from which on a segment may be full, or an event out of
        the reach of reads.
      record_format: how users become bytes.
    """

    def __init__(self, recommender: Recommender, memory_format: str, seen: str = "none"):
        """Prepare for a model.

        Args:
          memory_format: one of `codec.FORMATS`.
          seen: one of `seen.SEEN_FORMATS`.
        """
        self._memory_format = memory_format
        self._method, self._params = recommender.method, recommender.params
        self._catalogue = recommender.catalogue
        self._segment = self._method.config.data.segment
        empty = self._method.init_state(self._params, 1)
        self._initial = jax.tree.map(np.asarray, empty)
        states = state_format(self._method, memory_format)
        self.max_pending = self._method.read_length + 1
        width = self._catalogue.event_width
        self.record_format = RecordFormat(recommender.identity, states, width, seen)

    def replace_model(self, recommender: Recommender) -> None:
        """Go on with the same model over another item table; no update may be under way.

        Raises:
          UserError: item ids no longer fit into the states as they are stored.
        """
        states = state_format(recommender.method, self._memory_format)
        if states.id_bytes != self.record_format.states.id_bytes:
            raise UserError(
                f"{recommender.method.num_items:,} items need wider ids in the stored states: start "
                "the stream again."
            )
        self._method, self._params = recommender.method, recommender.params
        self._catalogue = recommender.catalogue

    def plan(self, user: MutableUser) -> tuple[int, int]:
        """Return what a user needs now, as `Method.plan` decides.

        Returns:
          (memory updates that are missing, pending events that are used up or out of reach).
        """
        plan = self._method.plan(np.asarray(user.events))
        first_pending = user.events - len(user.pending)
        return int(plan.updates) - user.segments, int(plan.start) - first_pending

    def stack_states(self, users: Sequence[MutableUser]) -> State:
        """Return the decoded states of users, none `IN_STORE`: numpy, a row per user."""
        states = jax.tree.map(lambda x: np.repeat(x, len(users), axis=0), self._initial)
        rows = [row for row, user in enumerate(users) if user.memory is not None]
        if rows:
            encoded = np.frombuffer(
                b"".join(cast(bytes, users[row].memory) for row in rows), np.uint8
            )
            stored = self.record_format.states.decode(encoded.reshape(len(rows), -1))
            held = states.memory, states.exact
            for out, new in zip(jax.tree.leaves(held), jax.tree.leaves(stored), strict=True):
                out[rows] = new
        groups = np.array([user.groups for user in users], np.int32)
        segments = np.array([user.segments for user in users], np.int32)
        return states._replace(groups=groups, segments=segments)

    def pending_events(self, user: MutableUser) -> Events:
        """Return the pending events of a user: numpy fields int32 [p]."""
        return self._split_fields(self._read_fields(user))

    def _read_fields(self, user: MutableUser) -> np.ndarray:
        """Return the pending events int32 [p, width], with times since the origin in place of gaps."""
        fields = user.pending.numbers()
        if self._catalogue.uses_times and user.last_time is not None:
            since = np.cumsum(fields[::-1, 1])[::-1] - fields[:, 1]
            fields[:, 1] = user.last_time - self._catalogue.time_origin - since
        return fields.astype(np.int32)

    def stack_pending(self, users: Sequence[MutableUser]) -> tuple[Events, np.ndarray]:
        """Return the pending events of users without missing updates, padded for a read.

        Returns:
          (numpy fields int32 [U, read_length], valid bool [U, read_length]).
        """
        counts = np.array([len(user.pending) for user in users])
        valid = np.arange(self._method.read_length) < counts[:, None]
        fields = np.zeros((*valid.shape, self.record_format.width), np.int32)
        fields[valid] = np.concatenate([self._read_fields(user) for user in users])
        return self._split_fields(fields), valid

    def finish_updates(self, users: Sequence[MutableUser]) -> None:
        """Update the memories of users until no segment is full, in place."""
        waiting = [user for user in users if len(user.pending) >= self.max_pending]
        while waiting:
            plans = [self.plan(user) for user in waiting]
            for user, (updates, drop) in zip(waiting, plans, strict=True):
                if not updates:
                    user.pending.drop(drop)
            ready = [user for user, plan in zip(waiting, plans, strict=True) if plan[0]]
            if ready:
                self.install(ready, self.compute(self.copy_inputs(ready)))
            waiting = [user for user in ready if len(user.pending) >= self.max_pending]

    def copy_inputs(self, users: Sequence[MutableUser]) -> UpdateInputs:
        """Copy what `compute` needs of users, each with a segment and an event after it pending."""
        fields = np.stack([self._read_fields(user)[: self._segment + 1] for user in users])
        return UpdateInputs(self.stack_states(users), self._split_fields(fields))

    def compute(self, inputs: UpdateInputs) -> UpdatedStates:
        """Update memories with the oldest pending segment; this changes no user."""
        new = self._update(inputs)
        memories = [row.tobytes() for row in self.record_format.states.encode(new)]
        return UpdatedStates(memories, new.groups.tolist(), new.segments.tolist())

    def install(self, users: Sequence[MutableUser], updated: UpdatedStates) -> None:
        """Give users their new states and remove the segment from their pending events.

        Users may have had further events since `copy_inputs`.
        """
        for user, memory, groups, segments in zip(users, *updated, strict=True):
            user.memory, user.groups, user.segments = memory, groups, segments
            user.state_changed = True
            user.pending.drop(self._segment)

    def finish(self, users: Sequence[MutableUser]) -> None:
        """Update users in place until no segment is full and no event is out of reach."""
        while late := [user for user in users if self.plan(user)[0] > 0]:
            self.install(late, self.compute(self.copy_inputs(late)))
        for user in users:
            user.pending.drop(self.plan(user)[1])

    def freeze(self, users: Sequence[MutableUser]) -> list[UserState]:
        """Return copies of users that are never changed."""
        states, origin = self.stack_states(users), self._catalogue.time_origin
        return [
            UserState(
                jax.tree.map(lambda rows, i=row: rows[i], states),
                self.pending_events(user),
                user.events,
                user.last_time,
                origin,
                None if user.seen is None else user.seen.copy(),
            )
            for row, user in enumerate(users)
        ]

    def warm_up(self) -> None:
        """Compile updates of all batch sizes."""
        rows, width = 1, self.record_format.width
        while self._method.stores_memory and rows <= batches.MAX_BATCH:
            states = self.stack_states([self.record_format.new_user()] * rows)
            events = self._split_fields(np.ones((rows, self._segment + 1, width), np.int32))
            self._update(UpdateInputs(states, events))
            rows *= 2

    def _update(self, inputs: UpdateInputs) -> State:
        states, events = inputs
        segment = jax.tree.map(lambda a: np.ascontiguousarray(a[:, :-1]), events)
        next_time = None if events.times is None else np.asarray(events.times[:, -1])
        return batches.update_memories(self._method, self._params, states, segment, next_time)

    def _split_fields(self, fields: np.ndarray) -> Events:
        """Return int32 [..., width] as events with fields [...]."""
        times = fields[..., 1] if self._catalogue.uses_times else None
        events = self._catalogue.select_fields(fields[..., 0], times, fields[..., -1])
        return jax.tree.map(np.ascontiguousarray, events)
