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
      width: int32 fields of a pending event.
      max_pending: number of pending fields from which on a segment may be full, or an event out of
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
        self.width = 1 + self._catalogue.uses_times + self._catalogue.uses_types
        self.max_pending = (self._method.read_length + 1) * self.width
        self.record_format = RecordFormat(recommender.identity, states, self.width, seen)

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
        first_pending = user.events - len(user.pending) // self.width
        return int(plan.updates) - user.segments, int(plan.start) - first_pending

    def stack_states(self, users: Sequence[MutableUser]) -> State:
        """Return the decoded states of users: numpy, a row per user."""
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
        fields = np.array(user.pending, np.int32).reshape(-1, self.width)
        return jax.tree.map(np.ascontiguousarray, self._split_fields(fields))

    def stack_pending(self, users: Sequence[MutableUser]) -> tuple[Events, np.ndarray]:
        """Return the pending events of users without missing updates, padded for a read.

        Returns:
          (numpy fields int32 [U, read_length], valid bool [U, read_length]).
        """
        counts = np.array([len(user.pending) // self.width for user in users])
        valid = np.arange(self._method.read_length) < counts[:, None]
        flat = np.frombuffer(b"".join(user.pending.tobytes() for user in users), np.int32)
        fields = np.zeros((*valid.shape, self.width), np.int32)
        fields[valid] = flat.reshape(-1, self.width)
        return jax.tree.map(np.ascontiguousarray, self._split_fields(fields)), valid

    def finish_updates(self, users: Sequence[MutableUser]) -> None:
        """Update the memories of users until no segment is full, in place."""
        waiting = [user for user in users if len(user.pending) >= self.max_pending]
        while waiting:
            plans = [self.plan(user) for user in waiting]
            for user, (updates, drop) in zip(waiting, plans, strict=True):
                if not updates:
                    del user.pending[: drop * self.width]
            ready = [user for user, plan in zip(waiting, plans, strict=True) if plan[0]]
            if ready:
                self.install(ready, self.compute(self.copy_inputs(ready)))
            waiting = [user for user in ready if len(user.pending) >= self.max_pending]

    def copy_inputs(self, users: Sequence[MutableUser]) -> UpdateInputs:
        """Copy what `compute` needs of users, each with a segment and an event after it pending."""
        size = self._segment + 1
        fields = [np.array(user.pending[: size * self.width], np.int32) for user in users]
        events = self._split_fields(np.stack(fields).reshape(len(users), size, self.width))
        return UpdateInputs(self.stack_states(users), events)

    def compute(self, inputs: UpdateInputs) -> UpdatedStates:
        """Update memories with the oldest pending segment; this changes no user."""
        new = self._update(inputs)
        memories = [row.tobytes() for row in self.record_format.states.encode(new)]
        return UpdatedStates(memories, new.groups.tolist(), new.segments.tolist())

    def install(self, users: Sequence[MutableUser], updated: UpdatedStates) -> None:
        """Give users their new states and remove the segment from their pending events.

        Users may have had further events since `copy_inputs`.
        """
        used = self._segment * self.width
        for user, memory, groups, segments in zip(users, *updated, strict=True):
            user.memory, user.groups, user.segments = memory, groups, segments
            del user.pending[:used]

    def finish(self, users: Sequence[MutableUser]) -> None:
        """Update users in place until no segment is full and no event is out of reach."""
        while late := [user for user in users if self.plan(user)[0] > 0]:
            self.install(late, self.compute(self.copy_inputs(late)))
        for user in users:
            del user.pending[: self.plan(user)[1] * self.width]

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
        rows = 1
        while self._method.stores_memory and rows <= batches.MAX_BATCH:
            events = self._split_fields(np.ones((rows, self._segment + 1, self.width), np.int32))
            self._update(UpdateInputs(self.stack_states([MutableUser()] * rows), events))
            rows *= 2

    def _update(self, inputs: UpdateInputs) -> State:
        states, events = inputs
        segment = jax.tree.map(lambda a: np.ascontiguousarray(a[:, :-1]), events)
        next_time = None if events.times is None else np.asarray(events.times[:, -1])
        return batches.update_memories(self._method, self._params, states, segment, next_time)

    def _split_fields(self, fields: np.ndarray) -> Events:
        """Return int32 [..., width] as events with fields [...]."""
        times = fields[..., 1] if self._catalogue.uses_times else None
        return self._catalogue.select_fields(fields[..., 0], times, fields[..., -1])
