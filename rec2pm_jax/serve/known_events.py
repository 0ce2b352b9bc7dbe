"""The histories that a page shows: an engine keeps the newest events of a user and no older ones."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.rebuild import is_rebuilt
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.users.user_state import UserState
from rec2pm_jax.typing import PADDING_ID

MAX_USERS = 256  # whose histories are kept


class PastEvent(NamedTuple):
    """An event of a user.

    Attributes:
      item: raw id; None for an item that the model did not know.
      time: seconds since 1970, or None where it is not kept.
      type: name of the event type, or None.
    """

    item: str | None
    time: int | None
    type: str | None


class KnownHistory(NamedTuple):
    """What is known of a user's history.

    Attributes:
      events: the newest events, oldest first.
      first: how many older events there are that only the memory holds.
    """

    events: list[PastEvent]
    first: int


class KnownEvents:
    """Remembers the events of the users that were looked at.

    A history begins with the dataset's events, if the engine's users do. Pending events are added each
    time the user is looked at. If a user gets a whole segment of events between two looks, the older
    ones are not known any more.
    """

    def __init__(self) -> None:
        self._users: OrderedDict[str, KnownHistory] = OrderedDict()

    def look_up(self, engine: Engine, name: str) -> tuple[UserState, KnownHistory]:
        """Return a user and what is known of the history.

        Args:
          engine: that holds the user.
          name: raw id, as `parse_id` returns it.

        Raises:
          RejectedInput: the id is too long for a store.
        """
        user = engine.get_user(name)
        pending = pending_events(engine.recommender, user)
        start = user.events - len(pending)
        older = self._users.pop(name, None)
        if older is None or not _continues(older, start, user.events):
            older = KnownHistory(_dataset_events(engine, name), 0)
            if not _agrees(older.events, pending, start):
                older = KnownHistory([], start)
        known = older.events[: user.events - older.first]
        new = pending[len(known) + older.first - start :]
        history = KnownHistory(known + new, older.first)
        self._users[name] = history
        if len(self._users) > MAX_USERS:
            self._users.popitem(last=False)
        return user, history


def pending_events(recommender: Recommender, user: UserState) -> list[PastEvent]:
    """Return the events that a user's next read takes raw, oldest first."""
    events, catalogue = user.pending, recommender.catalogue
    times = None if events.times is None else events.times.tolist()
    types = None if events.types is None else events.types.tolist()
    return [
        PastEvent(
            None if item == PADDING_ID else catalogue.items.raw_ids[item],
            None if times is None else times[at] + user.time_origin,
            None if types is None else _type_name(catalogue.event_types, types[at]),
        )
        for at, item in enumerate(events.ids.tolist())
    ]


def begins_with_dataset(engine: Engine) -> bool:
    """Return whether users of the engine's dataset start with their events there."""
    if engine.recommender.dataset is None:
        return False
    return engine.options.known_users or is_rebuilt(engine.store)


def _dataset_events(engine: Engine, name: str) -> list[PastEvent]:
    dataset = engine.recommender.dataset
    if dataset is None or not begins_with_dataset(engine):
        return []
    index = dataset.user_index(name)
    if index is None:
        return []
    sequence = dataset.sequence(index)
    items = [dataset.items.raw_ids[item] for item in sequence.ids.tolist()]
    times: list[int | None] = [None] * len(items)
    if sequence.times is not None:
        times = [time + dataset.time_origin for time in sequence.times.tolist()]
    types: list[str | None] = [None] * len(items)
    if sequence.types is not None:
        types = [_type_name(tuple(dataset.event_types), kind) for kind in sequence.types.tolist()]
    return list(map(PastEvent, items, times, types))


def _type_name(names: tuple[str, ...], number: int) -> str | None:
    return names[number - 1] if number else None


def _continues(history: KnownHistory, start: int, events: int) -> bool:
    """Return whether a user with pending events [start, events) has had more since then."""
    end = history.first + len(history.events)
    return history.first <= start <= end <= events


def _agrees(events: list[PastEvent], pending: list[PastEvent], start: int) -> bool:
    """Return whether a history can continue with the pending events: those from `start` on."""
    if start > len(events) or len(events) > start + len(pending):
        return False
    both = zip(events[start:], pending, strict=False)
    return all(old.item == new.item for old, new in both)
