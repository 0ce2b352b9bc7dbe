"""Between users as they are held and what a method takes: stacking, decoding, folding, encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from rec2pm_jax.methods.codec import decode, encode
from rec2pm_jax.stream import batches
from rec2pm_jax.stream.mutable_user import MutableUser
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.record import RecordFormat
from rec2pm_jax.typing import Events, State


class Folded(NamedTuple):
    """Attributes: encoded memory, groups and segments of each user after an update."""

    memories: list[bytes]
    groups: list[int]
    segments: list[int]


class Memories:
    """Memories of one model in one format.

    Attributes:
      width: int32 fields of a pending event.
      full: so many pending fields may make a segment due, or slide out of the window.
      form: of the records.
    """

    def __init__(self, recommender: Recommender, kind: str):
        """kind: one of `codec.FORMATS`."""
        self._recommender = recommender
        catalogue = recommender.catalogue
        empty = recommender.method.init_state(recommender.params, 1)
        self._initial = np.asarray(empty.memory, np.float32)[0]
        self.width = 1 + catalogue.uses_times + catalogue.uses_types
        self.full = (recommender.method.read_length + 1) * self.width
        self.form = RecordFormat(recommender.identity, kind, *self._initial.shape, self.width)

    def states(self, users: Sequence[MutableUser]) -> State:
        """The states of users, decoded and stacked: numpy, a row each."""
        memory = np.tile(self._initial, (len(users), 1, 1))
        kept = [row for row, live in enumerate(users) if live.memory is not None]
        if kept:
            stored = np.frombuffer(b"".join(users[row].memory for row in kept), np.uint8)
            memory[kept] = decode(stored.reshape(len(kept), -1), self.form.kind, self.form.dim)
        return State(
            memory,
            np.array([live.groups for live in users], np.int32),
            np.array([live.segments for live in users], np.int32),
        )

    def raw(self, live: MutableUser) -> Events:
        """The pending events of a user: numpy, fields [p]."""
        fields = np.array(live.pending, np.int32).reshape(-1, self.width)
        return jax.tree.map(np.ascontiguousarray, self._events(fields))

    def heads(self, users: Sequence[MutableUser]) -> tuple[State, Events]:
        """Copies of what `fold` takes, of users with a segment and an event after it pending.

        Returns:
          Their states, and events [U, S + 1].
        """
        size = self._recommender.method.config.data.segment + 1
        heads = [np.array(live.pending[: size * self.width], np.int32) for live in users]
        events = self._events(np.stack(heads).reshape(len(users), size, self.width))
        return self.states(users), events

    def fold(self, states: State, events: Events) -> Folded:
        """Folds the oldest pending segment of every user of `heads`; changes nothing."""
        new = self._fold(states, events)
        rows = [row.tobytes() for row in encode(new.memory, self.form.kind)]
        return Folded(rows, new.groups.tolist(), new.segments.tolist())

    def install(self, users: Sequence[MutableUser], folded: Folded) -> None:
        """Puts what `fold` returned in the users' places; events may have come since `heads`."""
        step = self._recommender.method.config.data.segment * self.width
        for live, memory, groups, segments in zip(users, *folded, strict=True):
            live.memory, live.groups, live.segments = memory, groups, segments
            del live.pending[:step]

    def warm_up(self) -> None:
        """Compiles the updates of all sizes of batches."""
        size, rows = self._recommender.method.config.data.segment, 1
        while self._initial.size and rows <= batches.MAX_BATCH:
            events = self._events(np.ones((rows, size + 1, self.width), np.int32))
            self._fold(self.states([MutableUser()] * rows), events)
            rows *= 2

    def _fold(self, states: State, events: Events) -> State:
        """events: [U, S + 1], a segment and the event after it."""
        segment = jax.tree.map(lambda a: np.ascontiguousarray(a[:, :-1]), events)
        next_time = None if events.times is None else events.times[:, -1]
        method, params = self._recommender.method, self._recommender.params
        return batches.fold(method, params, states, segment, next_time)

    def _events(self, fields: np.ndarray) -> Events:
        """int32 [..., width] to events [...]."""
        catalogue = self._recommender.catalogue
        return Events(
            fields[..., 0],
            fields[..., 1] if catalogue.uses_times else None,
            fields[..., -1] if catalogue.uses_types else None,
        )
