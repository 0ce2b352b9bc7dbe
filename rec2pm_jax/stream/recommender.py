"""The public Python API: observe events, recommend items. States go in and come out."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import KeysView, Mapping, Sequence
from functools import cached_property
from typing import Literal, overload

import jax
import numpy as np

from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.method import Method
from rec2pm_jax.stream.catalogue import Catalogue, EventCode
from rec2pm_jax.stream.compute import batches, compiled
from rec2pm_jax.stream.lines.events import (
    OUT_OF_ORDER,
    UNKNOWN_ITEM,
    Event,
    RawEvent,
    RawEvents,
    RawIds,
    RawTime,
    RejectedInput,
    parse_event,
    parse_id,
    parse_time,
)
from rec2pm_jax.stream.lines.requests import NO_FILTERS, RawFilters
from rec2pm_jax.stream.outcomes import Recommendation
from rec2pm_jax.stream.plan import ask, plan_search
from rec2pm_jax.stream.stores.record import ModelIdentity
from rec2pm_jax.stream.users.seen import SeenItems
from rec2pm_jax.stream.users.user_state import UserState
from rec2pm_jax.typing import Array, Events, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Recommender:
    """A trained model that keeps users' memories current and recommends items.

    `rec2pm_jax.load` returns one. All methods are functional: `observe` returns a new state and leaves
    the old one valid, so states can be kept, compared and stored by the caller.

    Answers equal those of the offline evaluation: the same segments update the memory, and the
    remaining events are read raw. A user without events gets the most frequent items of the training
    data, without scores.

    Attributes:
      method: the model's functions.
      params: its parameters.
      catalogue: its items, event types and origin of time.
      trained_identity: identity of the parameters as trained, if new items have been added since.
      dataset: whose users `user` knows.
      trained_params: parameters as trained, of a model whose items may change (`stream/live_items.py`).

    Example:
      A tiny untrained model; `rec2pm_jax.load("runs/demo/rec2pm")` returns a real one.

      >>> import jax, polars
      >>> from rec2pm_jax.config_dict import from_dict
      >>> from rec2pm_jax.data.dataset import Items
      >>> from rec2pm_jax.methods.registry import make_method
      >>> table = {"raw_id": ["7", "8", "9", "10"], "title": ["milk", "bread", "tea", "jam"]}
      >>> table |= {"category": [None] * 4, "count": [40, 30, 20, 10]}
      >>> config = from_dict({"data": {"segment": 2, "segments": 2, "recent": 1},
      ...                     "model": {"layers": 1, "heads": 1, "dim": 4}})
      >>> method = make_method(config, num_items=4)
      >>> items = Items(polars.DataFrame(table))
      >>> catalogue = Catalogue(items, (), 0, uses_times=False, uses_types=False)
      >>> model = Recommender(method, method.init(jax.random.key(0)), catalogue)
      >>> user = model.new_user()  # without events the most frequent items are recommended
      >>> [r.title for r in model.recommend(user, k=2)]
      ['milk', 'bread']

      Two full segments update the memory, and the newest event waits:

      >>> user = model.observe(user, ["7", "9", "7", "10", "8"])
      >>> user.events, model.count_updates(user), len(user.pending.ids), user.state.memory.shape
      (5, 2, 1, (4, 4))
      >>> best = model.recommend(user, k=3, exclude=["8"])
      >>> sorted(r.item for r in best)
      ['10', '7', '9']
    """

    method: Method
    params: Params
    catalogue: Catalogue
    trained_identity: ModelIdentity | None = None
    dataset: Dataset | None = None
    trained_params: Params | None = None

    def new_user(self) -> UserState:
        """Return the state of a user without events."""
        return self._empty_user

    def user(self, raw_id: str | numbers.Real) -> UserState:
        """Return the state of a user of the dataset, after all events that it has there.

        Raises:
          UserError: the dataset has no such user.
        """
        name = parse_id(raw_id, "user", self.catalogue.rules)
        index = None if self.dataset is None else self.dataset.user_index(name)
        if self.dataset is None or index is None:
            raise UserError(
                f"user {name!r} is not in the dataset; new_user() returns an empty one."
            )
        sequence, origin = self.dataset.sequence(index), self.dataset.time_origin
        last_time = None if sequence.times is None else int(sequence.times[-1]) + origin
        events = self.catalogue.encode_sequence(sequence, origin)
        seen = SeenItems.of_sequence(sequence, origin)
        return self._append(self._empty_user, events, last_time)._replace(seen=seen)

    @overload
    def observe(
        self, user: UserState, events: RawEvents, *, skip_unknown: Literal[False] = False
    ) -> UserState: ...

    @overload
    def observe(
        self, user: UserState, events: RawEvents, *, skip_unknown: Literal[True]
    ) -> tuple[UserState, list[RawEvent]]: ...

    def observe(
        self, user: UserState, events: RawEvents, *, skip_unknown: bool = False
    ) -> UserState | tuple[UserState, list[RawEvent]]:
        """Return the state of a user after further events.

        Args:
          user: the state before them, which stays valid.
          events: oldest first; a string, a number or a mapping stands for one event. Each is a raw
            item id, or a mapping with `item` and optionally `time` (seconds since 1970, ISO 8601 text
            or a datetime; models that read times need it) and `type` (name of the event type; models
            with event types need it).
          skip_unknown: leave out events with items that the model does not know (`known_items`), and
            return them.

        Returns:
          The new state; with `skip_unknown` (the new state, the skipped events). The memory is
          updated with every segment that is full.

        Raises:
          RejectedInput: a `UserError`; an unknown item or type, a missing or malformed field, or a
            time before that of the preceding event. The message names the event by its position.
        """
        user = self._at_time_origin(user)
        codes, last_time, skipped = [], user.last_time, []
        seen = None if user.seen is None else user.seen.copy()
        if isinstance(events, str | numbers.Real | Mapping):
            events = [events]
        for number, given in enumerate(events):
            event = None
            try:
                fields = given if isinstance(given, Mapping) else {"item": given}
                event = parse_event(fields, rules=self.catalogue.rules)
                code = self.encode_event(event, last_time)
            except RejectedInput as error:
                hint = ""
                if event is not None and error.reason == UNKNOWN_ITEM:
                    if skip_unknown:
                        skipped.append(given)
                        continue
                    hint = self.catalogue.suggest(event.item)
                    hint += " Pass skip_unknown=True to leave such events out."
                message = f"event {number}: {error}.{hint}"
                raise RejectedInput(error.reason, message) from None
            codes.append(code)
            if seen is not None:
                seen.add(code[0], self.catalogue.type_id(event.type), event.time)
            last_time = last_time if event.time is None else event.time
        if codes:
            added = self.catalogue.stack_codes(codes)
            user = self._append(user, added, last_time)._replace(seen=seen)
        return (user, skipped) if skip_unknown else user

    def _append(self, user: UserState, events: Events, last_time: int | None) -> UserState:
        [new], _ = batches.append_events(self.method, self.params, [user], [events], [last_time])
        return new

    def recommend(
        self,
        user: UserState,
        k: int = 10,
        exclude: RawIds = (),
        time: RawTime = None,
        filters: RawFilters = NO_FILTERS,
    ) -> list[Recommendation]:
        """Return the `k` best items for a user, best first.

        Args:
          user: its state.
          k: how many items.
          exclude: raw ids of items that must not be recommended, or a single one; unknown ones are
            ignored.
          time: of the request, for models that read times: seconds since 1970, ISO 8601 text or a
            datetime. None: it is not known.
          filters: `exclude_seen`, `candidates`, `allow` and `deny`, as a line of a stream has them.
            If they leave fewer than `k` items, fewer are returned.

        Raises:
          RejectedInput: a `UserError`; k is not between 1 and the number of items, or a filter names
            what does not exist.
          UserError: the scores are not finite, since training diverged.
        """
        return self.recommend_many([user], k, exclude, time, filters)[0]

    def recommend_many(
        self,
        users: Sequence[UserState],
        k: int = 10,
        exclude: RawIds = (),
        time: RawTime = None,
        filters: RawFilters = NO_FILTERS,
    ) -> list[list[Recommendation]]:
        """Return what `recommend` returns for each of several users, with one read for all.

        Args:
          users: their states.
          k, exclude, time, filters: as in `recommend`, the same for all; so are the errors.
        """
        when = parse_time(time, self.catalogue.rules)
        search = plan_search(self.catalogue, k, exclude, filters, when)
        rows: list[tuple[np.ndarray | None, np.ndarray]]
        rows = [(None, self.popular_items[1])] * len(users)
        active = [row for row, user in enumerate(users) if user.events]
        if active:
            readers = [self._at_time_origin(users[row]) for row in active]
            asked = ask(self.catalogue, when, search, [user.seen for user in readers])
            scores, ids = batches.find_best(
                self.method, self.params, self.scored_table, readers, asked, search.k
            )
            for row, found in zip(active, zip(scores, ids, strict=True), strict=True):
                rows[row] = found
        return [self.catalogue.name_items(*row, search) for row in rows]

    def count_updates(self, user: UserState) -> int:
        """Return how many memory updates a user has had."""
        return int(self.method.plan(user.events).updates)

    def with_time_origin(self, origin: int) -> Recommender:
        """Return the same model with times relative to another origin, in seconds since 1970."""
        if origin == self.catalogue.time_origin:
            return self
        catalogue = self.catalogue.with_time_origin(origin)
        return dataclasses.replace(self, catalogue=catalogue, trained_identity=self.identity)

    # --- parts of the above, for an engine that holds users itself ---

    def encode_event(
        self, event: Event, last_time: int | None, keep_unknown: bool = False
    ) -> EventCode:
        """Return a user's next event as numbers, see `Catalogue.encode_event`.

        Raises:
          RejectedInput: as `Catalogue.encode_event`, or the event is older than the user's last one.
        """
        code = self.catalogue.encode_event(event, keep_unknown)
        if event.time is not None and last_time is not None and event.time < last_time:
            raise RejectedInput(
                OUT_OF_ORDER, f"time {event.time} lies before {last_time}, the event before it"
            )
        return code

    @cached_property
    def known_items(self) -> KeysView[str]:
        """Raw ids of all items of the model, in the order of their ids; `in` is fast."""
        return dict.fromkeys(self.catalogue.items.raw_ids[1:]).keys()

    @cached_property
    def identity(self) -> ModelIdentity:
        """Which model this is, for stored states."""
        return self.trained_identity or ModelIdentity.from_params(self.method.config, self.params)

    @cached_property
    def scored_table(self) -> Array:
        """The item table prepared for scoring."""
        return compiled.prepare_catalogue(self.method, self.params)

    @cached_property
    def popular_items(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts float32 and ids of all items, the most frequent first, ties by id."""
        counts = self.catalogue.items.counts[1:]
        order = np.argsort(-counts, kind="stable")
        return counts[order].astype(np.float32), order + 1

    @cached_property
    def _empty_user(self) -> UserState:
        state = jax.tree.map(lambda x: np.asarray(x)[0], self.method.init_state(self.params, 1))
        empty = self.catalogue.stack_codes([])
        seen = SeenItems(detailed=True)
        return UserState(state, empty, 0, None, self.catalogue.time_origin, seen)

    def _at_time_origin(self, user: UserState) -> UserState:
        """Return the same user with times relative to those of this model."""
        uses_times = self.method.config.uses_times
        return user.with_time_origin(self.catalogue.time_origin, uses_times)
