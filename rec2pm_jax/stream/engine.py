"""Users by name: a store keeps the state of each, and events of many are applied in batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from rec2pm_jax.stream.events import Event, Refused
from rec2pm_jax.stream.recommender import Recommendation, Recommender
from rec2pm_jax.stream.user import UserState


class Store(Protocol):
    """Where states are kept."""

    def get(self, user: str) -> UserState | None:
        """The state of a user, or None for one never seen."""

    def put(self, user: str, state: UserState) -> None:
        """Keeps the state of a user in place of the old one."""


class MemoryStore:
    """States in a dictionary; they end with the process."""

    def __init__(self):
        self._states: dict[str, UserState] = {}

    def get(self, user: str) -> UserState | None:
        return self._states.get(user)

    def put(self, user: str, state: UserState) -> None:
        self._states[user] = state

    def __len__(self) -> int:
        return len(self._states)


class Ingested(NamedTuple):
    """Attributes: events applied, memory updates folded, (index, why) of the events refused."""

    events: int
    updates: int
    refused: list[tuple[int, Refused]]


class Answer(NamedTuple):
    """Attributes: what is recommended, from how many events and memory updates of the user."""

    user: str
    items: list[Recommendation]
    events: int
    updates: int


class Engine:
    """Applies events and answers requests for users known by name."""

    def __init__(self, recommender: Recommender, store: Store):
        self.recommender = recommender
        self.store = store

    def user(self, name: str) -> UserState:
        """The state of a user; that of a new user for one never seen."""
        state = self.store.get(name)
        return self.recommender.new_user() if state is None else state

    def ingest(self, events: Sequence[Event]) -> Ingested:
        """Applies events in order. How a stream is cut into calls does not change any state.

        Events that cannot be used are left out of the history and returned: unknown items and event
        types, fields the model needs but that are missing, and times before that of the user's last
        event (equal times are in order).
        """
        refused: list[tuple[int, Refused]] = []
        states: dict[str, UserState] = {}
        codes: dict[str, list] = {}
        last_times: dict[str, int | None] = {}
        for index, event in enumerate(events):
            name = event.user
            if name not in states:
                states[name] = self.user(name)
                last_times[name] = states[name].last_time
            try:
                code = self.recommender.code(event, last_times[name])
            except Refused as error:
                refused.append((index, error))
                continue
            codes.setdefault(name, []).append(code)
            if event.time is not None:
                last_times[name] = event.time
        if not codes:
            return Ingested(0, 0, refused)
        names = list(codes)
        new, updates = self.recommender.observe_many(
            [states[name] for name in names],
            [codes[name] for name in names],
            [last_times[name] for name in names],
        )
        for name, state in zip(names, new, strict=True):
            self.store.put(name, state)
        return Ingested(sum(map(len, codes.values())), updates, refused)

    def recommend(
        self,
        users: Sequence[str],
        k: int,
        exclude: Iterable[str] = (),
        time: int | None = None,
    ) -> list[Answer]:
        """Answers for users by name; see `Recommender.recommend`."""
        states = [self.user(name) for name in users]
        items = self.recommender.recommend_many(states, k, exclude, time)
        return [
            Answer(name, row, state.events, self.recommender.updates(state))
            for name, row, state in zip(users, items, states, strict=True)
        ]
