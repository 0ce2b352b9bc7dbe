"""The public Python API: observe events, recommend items. Functional: states go in and come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rec2pm_jax.methods.method import Method
from rec2pm_jax.stream import batches
from rec2pm_jax.stream.catalogue import Catalogue
from rec2pm_jax.stream.events import (
    MALFORMED,
    OUT_OF_ORDER,
    UNKNOWN_ITEM,
    Event,
    Refused,
    make_event,
)
from rec2pm_jax.stream.record import ModelIdentity
from rec2pm_jax.stream.user import UserState, empty_user
from rec2pm_jax.typing import Params


class Recommendation(NamedTuple):
    """Attributes: raw item id; title (the raw id where there is none); score, higher is better."""

    item: str
    title: str
    score: float


@dataclasses.dataclass(frozen=True, eq=False)
class Recommender:
    """A trained method with its parameters and catalogue; made by `rec2pm_jax.load`.

    It answers as the offline evaluation does: the same segments are folded by the same update, and
    the rest is read raw. A user without events gets the items of the training data by count.
    """

    method: Method
    params: Params
    catalogue: Catalogue
    trained: ModelIdentity | None = None  # before new items grew the parameters

    def new_user(self) -> UserState:
        """A user without events."""
        return self._empty

    def observe(self, user: UserState, events: Iterable[str | int | Mapping]) -> UserState:
        """The state after further events, oldest first.

        Args:
          events: raw item ids, or mappings with `item` and optionally `time` (seconds since 1970,
            needed by models with a time bias) and `type` (needed by models with event types).

        Raises:
          Refused (a UserError): an unknown item or type, a missing or malformed field, or a time
            before that of the event before it. `user` is as it was.
        """
        codes, last_time = [], user.last_time
        for number, given in enumerate(events):
            try:
                event = make_event(given if isinstance(given, Mapping) else {"item": given})
                codes.append(self.code(event, last_time))
            except Refused as error:
                hint = self.catalogue.suggest(event.item) if error.reason == UNKNOWN_ITEM else ""
                message = f"event {number}: {error}.{hint}"
                raise Refused(error.reason, message) from None
            last_time = last_time if event.time is None else event.time
        if not codes:
            return user
        [new], _ = self.observe_many([user], [codes], [last_time])
        return new

    def recommend(
        self,
        user: UserState,
        k: int = 10,
        exclude: Iterable[str] = (),
        time: int | None = None,
    ) -> list[Recommendation]:
        """The `k` best items, best first.

        Args:
          exclude: raw ids that are not recommended.
          time: of the request, seconds since 1970, for models with a time bias; by default that of
            the user's last event.

        Raises:
          Refused (a UserError): fewer than `k` items are left to recommend, or k < 1.
          UserError: scores are not finite.
        """
        return self.recommend_many([user], k, exclude, time)[0]

    # --- many users at once ---

    def code(self, event: Event, last_time: int | None) -> tuple[int, int, int]:
        """`Catalogue.code` of a user's next event, whose time must not lie before `last_time`.

        Equal times are in order: such events keep the order they arrive in.
        """
        code = self.catalogue.code(event)
        if event.time is not None and last_time is not None and event.time < last_time:
            raise Refused(
                OUT_OF_ORDER, f"time {event.time} lies before {last_time}, the event before it"
            )
        return code

    def observe_many(
        self,
        users: Sequence[UserState],
        codes: Sequence[Sequence[tuple[int, int, int]]],
        last_times: Sequence[int | None],
    ) -> tuple[list[UserState], int]:
        """Appends coded events to distinct users; returns their states and how many updates ran."""
        events = [self.catalogue.pack(list(new)) for new in codes]
        return batches.observe(self.method, self.params, users, events, last_times)

    def recommend_many(
        self,
        users: Sequence[UserState],
        k: int = 10,
        exclude: Iterable[str] = (),
        time: int | None = None,
    ) -> list[list[Recommendation]]:
        """`recommend` for several users with one `k`, `exclude` and `time`."""
        excluded, deep = self._depth(k, exclude)
        with_events = [user for user in users if user.events]
        answers = iter(())
        if with_events:
            times = self._request_times(with_events, time)
            scores, ids = batches.best_items(
                self.method, self.params, self.scored_by, with_events, times, deep
            )
            answers = zip(scores, ids, strict=True)
        popular = self.popular
        rows = [next(answers) if user.events else popular for user in users]
        return [self._name(*row, k, excluded) for row in rows]

    def answer(
        self,
        best: Callable[[int | None, int], tuple[np.ndarray, np.ndarray]] | None,
        last_time: int | None,
        k: int,
        exclude: Iterable[str],
        time: int | None,
    ) -> list[Recommendation]:
        """`recommend` with another reader.

        Args:
          best: (request time, deep) -> (scores, ids) [deep], the best items of the user at that time
            (seconds since the origin; None for a model without time bias), best first; None for a
            user without events.
          last_time: of the user's last event, seconds since the origin.
        """
        excluded, deep = self._depth(k, exclude)
        if best is None:
            return self._name(*self.popular, k, excluded)
        asked = None
        if self.catalogue.uses_times:
            asked = last_time if time is None else self.catalogue.code_time(time)
        scores, ids = best(asked, batches.padded_k(deep, self.catalogue.num_items))
        batches.check_finite(scores)
        return self._name(scores, ids, k, excluded)

    def _depth(self, k: int, exclude: Iterable[str]) -> tuple[np.ndarray, int]:
        """Sorted ids of excluded items, and how many items to find: k when all of them are lost."""
        excluded = self.catalogue.excluded(exclude)
        left = self.catalogue.num_items - len(excluded)
        if not 1 <= k <= left:
            raise Refused(
                MALFORMED, f"k={k}, but it must be between 1 and the {left} items left to recommend"
            )
        return excluded, k + len(excluded)

    def updates(self, user: UserState) -> int:
        """Memory updates folded for a user so far."""
        return int(self.method.plan(user.events).updates)

    @cached_property
    def _empty(self) -> UserState:
        return empty_user(self.method, self.params, self.catalogue.pack([]))

    @cached_property
    def identity(self) -> ModelIdentity:
        """Which model it is, for stored states."""
        return self.trained or ModelIdentity.of(self.method.config, self.params)

    @cached_property
    def scored_by(self):
        """The item table as reads take it."""
        return batches.prepared(self.method, self.params)

    @cached_property
    def popular(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts and ids of all items, the most frequent first, ties by id."""
        counts = self.catalogue.items.counts[1:]
        order = np.argsort(-counts, kind="stable")
        return counts[order].astype(np.float32), order + 1

    def _request_times(self, users: Sequence[UserState], time: int | None) -> np.ndarray | None:
        if not self.catalogue.uses_times:
            return None
        if time is None:
            return np.array([user.pending.times[-1] for user in users], np.int32)
        return np.full(len(users), self.catalogue.code_time(time), np.int32)

    def _name(self, scores, ids, k: int, excluded: np.ndarray) -> list[Recommendation]:
        kept = np.flatnonzero(~np.isin(ids, excluded))[:k]
        items = self.catalogue.items
        return [
            Recommendation(items.raw_ids[i], items.titles[i], float(score))
            for i, score in zip(ids[kept], scores[kept], strict=True)
        ]
