"""Answers to checked requests: one user from an open session, or several users at once.

Half of a request is reading the item table. Requests that wait at the same time share that: their users
are read as one batch, except those with an open session, whose read costs less. A batch has one of a
few sizes, padded by repeating a user, so that few programs are compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np

from rec2pm_jax.nn.catalogue.filters import ItemFilter
from rec2pm_jax.stream.compute import batches, compiled
from rec2pm_jax.stream.compute.session_cache import SessionCache
from rec2pm_jax.stream.compute.updater import MemoryUpdater
from rec2pm_jax.stream.outcomes import Answer
from rec2pm_jax.stream.plan import ask, plan_search
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.search import Asked, Search
from rec2pm_jax.stream.users.mutable_user import MutableUser
from rec2pm_jax.stream.users.pending import PendingEvents
from rec2pm_jax.typing import Array

BATCH_SIZES = (2, 4, 8)


class Wanted(NamedTuple):
    """A checked request of a user without missing updates.

    Attributes:
      name: raw id of the user.
      user: the user.
      search: the request.
      asked: the same in numbers, one row; None for a user without events.
    """

    name: str
    user: MutableUser
    search: Search
    asked: Asked | None

    @classmethod
    def of(
        cls, model: Recommender, name: str, user: MutableUser, search: Search, time: int | None
    ) -> Wanted:
        """Return the request in numbers; arguments as the attributes, and the request's time."""
        asked = None
        if user.events:
            asked = ask(model.catalogue, time, search, [user.seen], always=True)
        return cls(name, user, search, asked)

    @property
    def can_share(self) -> bool:
        """Whether a batch may hold it: its filter is a list of items."""
        if self.asked is None:
            return False
        return self.asked.rule.blocked is None and self.asked.rule.candidates is None


class Reader:
    """Answers requests of one model.

    Attributes:
      sessions: serves a user who asks alone, see `SessionCache`.
    """

    def __init__(self, updater: MemoryUpdater, model: Recommender, sessions: int):
        """Start without sessions.

        Args:
          updater: of the model.
          sessions: how many are kept.
        """
        self._updater = updater
        self.sessions = SessionCache(model.method, model.params, model.scored_table, sessions)

    def warm_up(self, model: Recommender, k: int, *, together: bool) -> None:
        """Compile what requests of up to `k` items need.

        Args:
          together: for `answer_all`, too.
        """
        search, user = plan_search(model.catalogue, k), self._updater.record_format.new_user()
        for count in (1, 1, 2, 4):  # a session is opened, read again, gets one event and several
            user.pending = PendingEvents.of(np.ones((count, model.catalogue.event_width), np.int64))
            user.events, user.last_time = count, model.catalogue.time_origin
            wanted = Wanted.of(model, "", user, search, None)
            self.answer(model, wanted)
        for size in BATCH_SIZES if together else ():
            self._read([wanted] * size, model)

    def answer(self, model: Recommender, wanted: Wanted) -> Answer:
        """Answer one request.

        Raises:
          UserError: some scores are NaN or infinite.
        """
        user, asked = wanted.user, wanted.asked
        if asked is None:
            return _name_items(model, wanted, None, model.popular_items[1])
        k = batches.padded_k(wanted.search.k, model.catalogue.num_items)
        if model.method.spans_devices:  # it has no sessions
            if asked.rule.candidates is not None:
                k = asked.rule.candidates.shape[1]
            scores, ids = (found[0] for found in self._find_best(model, [user], asked, k))
            return _name_items(model, wanted, scores, ids)
        scores, ids = self.sessions.find_best(
            wanted.name,
            self._place(user)[0],
            lambda: self._updater.stack_states([user]),
            self._updater.pending_events(user),
            asked,
            k,
        )
        return _name_items(model, wanted, scores, ids)

    def answer_all(
        self, model: Recommender, wanted: Sequence[Wanted]
    ) -> Iterator[tuple[int, Answer]]:
        """Answer several requests; yields (its number, what `answer` returns, up to rounding).

        Raises:
          UserError: some scores are NaN or infinite.
        """
        shared = [number for number, one in enumerate(wanted) if self._can_share(one)]
        batched = [batch for batch in _cut(shared) if len(batch) > 1]
        in_batches = {number for batch in batched for number in batch}
        for number, one in enumerate(wanted):
            if number not in in_batches:
                yield number, self.answer(model, one)
        for batch in batched:
            yield from zip(batch, self._read([wanted[n] for n in batch], model), strict=True)

    def _can_share(self, wanted: Wanted) -> bool:
        start, count = self._place(wanted.user)
        return wanted.can_share and not self.sessions.serves(wanted.name, start, count)

    def _place(self, user: MutableUser) -> tuple[int, int]:
        """Return the events before the pending ones, and how many are pending."""
        count = len(user.pending)
        return user.events - count, count

    def _read(self, wanted: Sequence[Wanted], model: Recommender) -> list[Answer]:
        """Answer requests that can share a batch, at most as many as the largest size."""
        size = next(size for size in BATCH_SIZES if size >= len(wanted))
        padded = [*wanted, *[wanted[0]] * (size - len(wanted))]
        users = [one.user for one in padded]
        k = max(batches.padded_k(one.search.k, model.catalogue.num_items) for one in wanted)
        asked = _stack([cast(Asked, one.asked) for one in padded])
        scores, ids = self._find_best(model, users, asked, k)
        return [_name_items(model, one, scores[row], ids[row]) for row, one in enumerate(wanted)]

    def _find_best(
        self, model: Recommender, users: Sequence[MutableUser], asked: Asked, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and ids of users who ask together, [U, k] each."""
        method, states = model.method, self._updater.stack_states(users)
        window = self._updater.stack_pending(users)
        tables = model.params, model.scored_table
        found = compiled.run(method, compiled.read_best, method, k, *tables, states, *window, asked)
        return np.asarray(found[0]), np.asarray(found[1])


def _cut(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut requests into batches."""
    for begin in range(0, len(numbers), BATCH_SIZES[-1]):
        yield numbers[begin : begin + BATCH_SIZES[-1]]


def _stack(asked: Sequence[Asked]) -> Asked:
    """Return requests of one row each as one batch; shorter lists of denied items are padded."""
    lists = [np.asarray(one.rule.denied) for one in asked]
    denied = np.zeros((len(lists), max(row.shape[1] for row in lists)), np.int32)
    for out, row in zip(denied, lists, strict=True):
        out[: row.shape[1]] = row[0]
    times = [one.time for one in asked]
    time = None if times[0] is None else np.concatenate([np.asarray(t) for t in times])
    return Asked(cast("Array | None", time), ItemFilter(denied=cast(Array, denied)))


def _name_items(
    model: Recommender, wanted: Wanted, scores: np.ndarray | None, ids: np.ndarray
) -> Answer:
    """Return the answer; `scores` is None for the most frequent items."""
    if scores is not None:
        batches.check_finite(scores, filtered=True)
    user, search = wanted.user, wanted.search
    items = model.catalogue.name_items(scores, ids, search)
    return Answer(wanted.name, items, user.events, user.segments, scores is None, search.k)
