"""What a model knows of the world: its items, event types and origin of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from rec2pm_jax.config import ModelConfig
from rec2pm_jax.data.dataset import Dataset, Items
from rec2pm_jax.errors import nearest
from rec2pm_jax.stream.events import MALFORMED, UNKNOWN_ITEM, UNKNOWN_TYPE, Event, Refused
from rec2pm_jax.typing import Events


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Translates raw ids and back.

    Attributes:
      items: the item table of the training data.
      event_types: type id = position + 1.
      time_origin: seconds since 1970 of time 0.
      uses_times: the model has a time bias, so every event must say its time.
      uses_types: the model embeds event types, so every event must say its type.
    """

    items: Items
    event_types: tuple[str, ...]
    time_origin: int
    uses_times: bool
    uses_types: bool

    @classmethod
    def of(cls, dataset: Dataset, model: ModelConfig) -> Catalogue:
        return cls(
            dataset.items,
            tuple(dataset.event_types),
            dataset.time_origin,
            uses_times=model.relative_bias == "position_time",
            uses_types=model.event_types > 0,
        )

    @property
    def num_items(self) -> int:
        return len(self.items.raw_ids) - 1

    def pack(self, codes: list[tuple[int, int, int]]) -> Events:
        """Events of one user [n] (numpy int32) from what `code` returned."""
        table = np.array(codes, np.int32).reshape(-1, 3)
        ids, times, types = (np.ascontiguousarray(column) for column in table.T)
        return Events(ids, times if self.uses_times else None, types if self.uses_types else None)

    def code(self, event: Event) -> tuple[int, int, int]:
        """(item id, time, type id) of an event; 0 for a time or type that the model does not use.

        Raises:
          Refused: an item or type that is not in the training data, or a field the model needs is
            missing or out of range.
        """
        item = self.items.id_of(event.item)
        if item is None:
            raise Refused(UNKNOWN_ITEM, f"item {event.item!r} is not in the training data")
        if not (self.uses_times or self.uses_types):
            return item, 0, 0
        return item, self.code_time(event.time), self._code_type(event.type)

    def code_time(self, time: int | None) -> int:
        """Seconds since `time_origin`; 0 if the model does not use times."""
        if not self.uses_times:
            return 0
        if time is None:
            raise Refused(MALFORMED, '"time" is missing, and this model uses the time of events')
        seconds = time - self.time_origin
        if abs(seconds) >= 2**31:
            raise Refused(
                MALFORMED, f'"time" {time} is more than 68 years from the training data\'s'
            )
        return seconds

    def _code_type(self, kind: str | None) -> int:
        if not self.uses_types:
            return 0
        if kind is None:
            raise Refused(MALFORMED, '"type" is missing, and this model uses event types')
        if kind not in self.event_types:
            known = ", ".join(self.event_types)
            raise Refused(UNKNOWN_TYPE, f"event type {kind!r} is unknown; known are {known}")
        return self.event_types.index(kind) + 1

    def suggest(self, raw: str) -> str:
        """' Did you mean "x"?' for the nearest known item, or ''; slow for large catalogues."""
        return nearest(raw, self.items.raw_ids[1:])

    def excluded(self, exclude: Iterable[str]) -> np.ndarray:
        """Sorted distinct ids of raw items; unknown ones are never recommended anyway."""
        ids = (self.items.id_of(str(raw)) for raw in exclude)
        return np.array(sorted({i for i in ids if i is not None}), np.int64)

    def unknown(self, raw_ids: Iterable[str]) -> int:
        """How many of the raw ids are not in the training data."""
        return sum(self.items.id_of(raw) is None for raw in raw_ids)
