"""What a model knows of the outside world: its items, its event types and its origin of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import cast

import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import Dataset, Items, UserSequence
from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.errors import nearest
from rec2pm_jax.stream.lines.events import (
    MALFORMED,
    UNKNOWN_ITEM,
    UNKNOWN_TYPE,
    Event,
    RejectedInput,
)
from rec2pm_jax.stream.outcomes import Recommendation
from rec2pm_jax.stream.search import Search
from rec2pm_jax.stream.users.user_state import shift_times
from rec2pm_jax.typing import PADDING_ID, Array, Events

EventCode = tuple[int, int, int]  # item id, seconds since the time origin, event-type id


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Translates raw ids, event types and times to numbers, and item ids back.

    Attributes:
      items: the item table of the training data.
      event_types: names of event types; a type's id is its position + 1.
      time_origin: seconds since 1970 of time 0.
      uses_times: whether the model reads times, so that every event must have one.
      uses_types: whether the model embeds event types, so that every event must have a type.
      rules: how the ids and times of the training data were read; those of new events are read alike.
    """

    items: Items
    event_types: tuple[str, ...]
    time_origin: int
    uses_times: bool
    uses_types: bool
    rules: ValueRules = ValueRules()

    @classmethod
    def from_dataset(cls, dataset: Dataset, config: Config) -> Catalogue:
        """Return the catalogue of a dataset, for a model of this configuration."""
        return cls(
            dataset.items,
            tuple(dataset.event_types),
            dataset.time_origin,
            uses_times=config.reads_times,
            uses_types=config.model.event_types > 0,
            rules=ValueRules.of(dataset.info),
        )

    def with_time_origin(self, origin: int) -> Catalogue:
        """Return the same catalogue with another origin of time, in seconds since 1970."""
        if origin == self.time_origin:
            return self
        return dataclasses.replace(self, time_origin=origin)

    @property
    def event_width(self) -> int:
        """Fields of a pending event: the item, and time and type if the model uses them."""
        return 1 + self.uses_times + self.uses_types

    @property
    def num_items(self) -> int:
        """Items that can be recommended."""
        return len(self.items.raw_ids) - 1

    def encode_event(self, event: Event, keep_unknown: bool = False) -> EventCode:
        """Return an event as numbers; 0 for a time or type that the model does not use.

        Args:
          keep_unknown: give an event of an unknown item the id 0 instead of refusing it.

        Raises:
          RejectedInput: the item or type is not in the training data, or a field that the model needs
            is missing or out of range.
        """
        item = self.items.id_of(event.item)
        if item is None and keep_unknown:
            item = PADDING_ID
        if item is None:
            raise RejectedInput(UNKNOWN_ITEM, f"item {event.item!r} is not in the training data")
        if not (self.uses_times or self.uses_types):
            return item, 0, 0
        return item, self.encode_time(event.time), self._encode_type(event.type)

    def encode_time(self, time: int | None) -> int:
        """Return seconds since the time origin; 0 if the model does not use times.

        Args:
          time: seconds since 1970.

        Raises:
          RejectedInput: the model uses times, and this one is missing or out of range.
        """
        if not self.uses_times:
            return 0
        if time is None:
            raise RejectedInput(
                MALFORMED, '"time" is missing, and this model uses the time of events'
            )
        seconds = time - self.time_origin
        if abs(seconds) >= 2**31:
            raise RejectedInput(
                MALFORMED, f'"time" {time} is more than 68 years from the training data\'s'
            )
        return seconds

    def _encode_type(self, kind: str | None) -> int:
        if not self.uses_types:
            return 0
        if kind is None:
            raise RejectedInput(MALFORMED, '"type" is missing, and this model uses event types')
        if kind not in self.event_types:
            known = ", ".join(self.event_types)
            raise RejectedInput(UNKNOWN_TYPE, f"event type {kind!r} is unknown; known are {known}")
        return self.event_types.index(kind) + 1

    def select_fields(
        self, ids: np.ndarray, times: np.ndarray | None, types: np.ndarray | None
    ) -> Events:
        """Return events with the fields that the model uses.

        Args:
          ids, times, types: int32 of one shape; times and types that the model does not use may be
            None.
        """
        return Events(
            cast(Array, ids),
            cast(Array, times) if self.uses_times else None,
            cast(Array, types) if self.uses_types else None,
        )

    def encode_sequence(self, sequence: UserSequence, time_origin: int) -> Events:
        """Return the events of a dataset's user, with times relative to this catalogue's origin.

        Args:
          time_origin: seconds since 1970 of time 0 of the sequence.
        """
        events = self.select_fields(sequence.ids, sequence.times, sequence.types)
        if events.times is None:
            return events
        return events._replace(times=shift_times(events.times, time_origin, self.time_origin))

    def stack_codes(self, codes: Sequence[EventCode]) -> Events:
        """Return encoded events of one user as arrays: numpy fields int32 [n]."""
        table = np.array(codes, np.int32).reshape(-1, 3)
        return self.select_fields(*(np.ascontiguousarray(column) for column in table.T))

    def field_selector(self) -> Callable[[EventCode], tuple[int, ...]]:
        """Return a function that selects what is kept of an event: `event_width` fields."""
        if self.uses_times:
            return tuple if self.uses_types else itemgetter(0, 1)
        return itemgetter(0, 2) if self.uses_types else itemgetter(slice(1))

    @cached_property
    def category_ids(self) -> dict[str, np.ndarray]:
        """The items of each category, int32; empty if the item table has no categories."""
        members: dict[str, list[int]] = {}
        for number, name in enumerate(self.items.categories):
            if name is not None:
                members.setdefault(name, []).append(number)
        return {name: np.array(ids, np.int32) for name, ids in members.items()}

    def type_id(self, kind: str | None) -> int:
        """Return the id of an event type, whether the model uses types or not; 0 if unknown."""
        return 1 + self.event_types.index(kind) if kind in self.event_types else 0

    def name_items(
        self, scores: np.ndarray | None, ids: np.ndarray, search: Search
    ) -> list[Recommendation]:
        """Return the best items of a search by raw id and title: `search.k`, or all that are left.

        Args:
          scores: of the ids, best first, -inf for what the filters leave out. None: `ids` are those
            of all items, the most frequent first, of a user without events.
          ids: [n].
        """
        if scores is None:
            ids = search.keep_allowed(ids)[: search.k]
            found = [None] * len(ids)
        else:
            kept = np.flatnonzero(scores > -np.inf)[: search.k]
            ids, found = ids[kept], scores[kept].tolist()
        raw_ids, titles = self.items.raw_ids, self.items.titles
        return [
            Recommendation(raw_ids[i], titles[i], score)
            for i, score in zip(ids, found, strict=True)
        ]

    def suggest(self, raw_id: str) -> str:
        """Return ' Did you mean "x"?' for the nearest known item, or ''; slow for large catalogues."""
        return nearest(raw_id, self.items.raw_ids[1:])

    def known_ids(self, raw_ids: Iterable[str]) -> np.ndarray:
        """Return the sorted distinct ids int64 of those raw ids that are known."""
        ids = (self.items.id_of(raw) for raw in raw_ids)
        return np.array(sorted({i for i in ids if i is not None}), np.int64)

    def count_unknown(self, raw_ids: Iterable[str]) -> int:
        """Return how many of the raw ids are not in the training data."""
        return sum(self.items.id_of(raw) is None for raw in raw_ids)
