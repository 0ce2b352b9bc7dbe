"""Users by name: events are appended, memories updated, requests answered, changes committed."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from rec2pm_jax.stream.compute.histories import compute_known_users
from rec2pm_jax.stream.compute.reader import Reader, Wanted
from rec2pm_jax.stream.compute.update_queue import UpdateQueue
from rec2pm_jax.stream.compute.updater import MemoryUpdater
from rec2pm_jax.stream.lines.events import (
    DUPLICATE,
    FAR_FUTURE,
    MALFORMED,
    Event,
    RawIds,
    RawTime,
    RejectedInput,
    parse_id,
    parse_time,
)
from rec2pm_jax.stream.lines.requests import NO_FILTERS, RawFilters, Request
from rec2pm_jax.stream.metrics import EngineGauges
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.outcomes import Answer, Ingested, Rejections
from rec2pm_jax.stream.plan import plan_search
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import (
    MAX_USER_BYTES,
    Store,
    claim_store,
    claim_time_origin,
    is_storable,
)
from rec2pm_jax.stream.stores.commit_writer import CommitWriter
from rec2pm_jax.stream.stores.reading import read_states
from rec2pm_jax.stream.users.mutable_user import MutableUser
from rec2pm_jax.stream.users.user_cache import UserCache
from rec2pm_jax.stream.users.user_state import UserState
from rec2pm_jax.typing import PADDING_ID


class Engine:
    """Keeps the users of one model in one store.

    Not thread-safe: one thread calls it. Two private threads compute updates and write commits.

    Attributes:
      recommender: as given, but with the store's origin of time.
      store, options: as given.
      commit_writer: commits changes, see `CommitWriter`.
      update_queue: computes new memories, see `UpdateQueue`.
      sessions: serves repeated requests, see `SessionCache`.
      record_format: how users are stored.
      num_unknown_items: events of unknown items so far.
    """

    def __init__(
        self,
        recommender: Recommender,
        store: Store,
        options: EngineOptions = EngineOptions(),  # noqa: B008 (immutable)
        now: Callable[[], float] = time.time,
    ):
        """Open the store for a model.

        Args:
          now: returns seconds since 1970.

        Raises:
          UserError: the store holds states of another model or of other options.
        """
        self.store, self.options, self._now = store, options, now
        identity = recommender.identity
        claim_store(
            store,
            {
                "model": identity.model,
                "config_hash": identity.config_hash,
                "memory": options.memory,
                "workers": options.worker.count,
                "seen": options.seen,
            },
        )
        origin = claim_time_origin(store, recommender.catalogue.time_origin)
        self.recommender = recommender = recommender.with_time_origin(origin)
        self._updater = MemoryUpdater(recommender, options.memory, options.seen)
        self.record_format = self._updater.record_format
        self.commit_writer = CommitWriter(store, self.record_format, options.lifetime_s)
        self._read_states = functools.partial(read_states, store, self.record_format)
        self.update_queue = UpdateQueue(
            self._updater, self._read_states, self.commit_writer.mark_changed
        )
        self._reader = Reader(self._updater, recommender, options.sessions)
        self.sessions = self._reader.sessions
        self._users = UserCache()
        self.num_unknown_items = 0

    def replace_items(self, recommender: Recommender) -> None:
        """Go on with the same model over another item table, as `LiveItems` makes it."""
        self.update_queue.finish_all()
        origin = self.recommender.catalogue.time_origin
        self.recommender = recommender = recommender.with_time_origin(origin)
        self._updater.replace_model(recommender)
        self.sessions.replace_model(
            recommender.method, recommender.params, recommender.scored_table
        )

    def warm_up(self, k: int = 10, *, together: bool = False) -> None:
        """Compile everything that requests of up to `k` items need.

        Args:
          together: whether several are answered at once, see `recommend_all`.
        """
        self._updater.warm_up()
        reader = Reader(self._updater, self.recommender, sessions=1)
        reader.warm_up(self.recommender, k, together=together)

    # --- events ---

    def ingest(self, events: Sequence[Event]) -> Ingested:
        """Apply events and compute all updates. How a stream is cut into calls changes no state."""
        applied, rejected = self.apply(events)
        before = self.update_queue.num_updates
        self.update_queue.finish_all()
        return Ingested(applied, self.update_queue.num_updates - before, rejected)

    def apply(self, events: Sequence[Event]) -> tuple[int, Rejections]:
        """Append events to their users, in order; updates are left to `update_queue`.

        Rejected are events

        - with an unknown event type, or without a field that the model needs;
        - older than the last event of their user (equal times are in order), or too far in the future;
        - with a `seq` that is not above the user's last one;
        - of users whose id is too long for a store.

        Events of unknown items are kept: a read sees that something happened, and when.

        Returns:
          (how many were applied, the rejected ones).
        """
        rejected: Rejections = []
        users = self._load({event.user for event in events})
        latest = self._now() + self.options.max_ahead_s
        mark_changed, encode_event = self.commit_writer.mark_changed, self.recommender.encode_event
        select_fields = self.recommender.catalogue.field_selector()
        max_pending = self._updater.max_pending
        for index, event in enumerate(events):
            name, _, when, kind, seq = event
            try:
                user = users.get(name)
                if user is None:
                    raise _id_too_long(name)
                if seq is not None and seq <= user.watermark:
                    raise RejectedInput(DUPLICATE, f"seq {seq} is not above {user.watermark}")
                if when is not None and when > latest:
                    raise RejectedInput(FAR_FUTURE, f"time {when} lies in the future")
                item, _, type_id = encode_event(event, user.last_time, True)
            except RejectedInput as error:
                rejected.append((index, error))
                continue
            self.num_unknown_items += item == PADDING_ID
            mark_changed(name, user)
            user.append(select_fields((item, user.gap_before(when), type_id)), when, seq)
            if user.seen is not None:
                user.seen.add(item, self.recommender.catalogue.type_id(kind), when)
            if len(user.pending) >= max_pending:
                self.update_queue.add(name, user)
        return len(events) - len(rejected), rejected

    def _load(self, names: Collection[str]) -> dict[str, MutableUser]:
        """Bring users into the process, new ones empty; ids too long for a store are left out."""
        now, loaded = self._now(), self._users.find(names)
        missing = [name for name in names if name not in loaded and is_storable(name)]
        if not missing:
            return loaded
        records = self.store.get(missing)
        known: dict[str, MutableUser] = {}
        if self.options.known_users:
            new = [name for name, record in zip(missing, records, strict=True) if record is None]
            known = compute_known_users(self.recommender, self.record_format, new)
        for name, record in zip(missing, records, strict=True):
            user = known.get(name)
            if record is not None:
                user = self.record_format.decode(name, record, now)
            loaded[name] = user = self.record_format.new_user() if user is None else user
            self._users.add(name, user)
            if len(user.pending) >= self._updater.max_pending:
                self.update_queue.add(name, user)
        return loaded

    def evict(self, max_examined: int) -> None:
        """Release the oldest users that are in the store, until `max_cached_users` are left.

        Args:
          max_examined: users to examine at most, as requests wait meanwhile. A user with uncommitted
            changes or a pending update stays, and counts as new.
        """
        excess = len(self._users) - self.options.max_cached_users
        for _ in range(min(max_examined, excess)):
            name, user = self._users.pop_oldest()
            if self.commit_writer.has_uncommitted(name) or name in self.update_queue:
                self._users.add(name, user)

    def release_all(self) -> None:
        """Release all users, of whom none may be uncommitted; others may then write to them."""
        self._users = UserCache()
        self.sessions.clear()

    # --- requests ---

    def get_user(self, name: str) -> UserState:
        """Return the state of a user with all updates; an empty one for a user never seen."""
        return self._updater.freeze([self._load_updated(name)])[0]

    def recommend(
        self,
        name: str,
        k: int,
        exclude: RawIds = (),
        time: RawTime = None,
        filters: RawFilters = NO_FILTERS,
    ) -> Answer:
        """Return what to recommend to a user.

        Args:
          name: raw id of the user.
          k, exclude, time, filters: as in `Recommender.recommend`.

        Raises:
          RejectedInput, UserError: as `Recommender.recommend`, or the id is too long for a store.
        """
        wanted = self._check(name, k, exclude, time, filters)
        return self._reader.answer(self.recommender, wanted)

    def recommend_all(
        self, requests: Sequence[Request]
    ) -> Iterator[tuple[int, Answer | RejectedInput]]:
        """Answer several requests, which costs less than one by one.

        Yields:
          (number of a request, what `recommend` returns, up to rounding, or why it was rejected).

        Raises:
          UserError: as `recommend`.
        """
        wanted: dict[int, Wanted] = {}
        for number, request in enumerate(requests):
            try:
                wanted[number] = self._check(*request)
            except RejectedInput as error:
                yield number, error
        numbers = list(wanted)
        for place, answer in self._reader.answer_all(self.recommender, list(wanted.values())):
            yield numbers[place], answer

    def _check(
        self, name: str, k: int, exclude: RawIds, time: RawTime, filters: RawFilters
    ) -> Wanted:
        """Return a request in numbers, its user without missing updates."""
        model, rules = self.recommender, self.recommender.catalogue.rules
        name, asked = parse_id(name, "user", rules), parse_time(time, rules)
        user = self._load_updated(name)
        search = plan_search(model.catalogue, k, exclude, filters, asked)
        return Wanted.of(model, name, user, search, asked)

    def _load_updated(self, name: str) -> MutableUser:
        """Return a user without missing updates, whose memory was read."""
        user = self._load([name]).get(name)
        if user is None:
            raise _id_too_long(name)
        self.update_queue.finish_user(name, user)
        self._read_states({name: user})
        return user

    # --- commits ---

    def begin_commit(self, positions: Mapping[str, bytes]) -> None:
        """Begin a commit of all users as they are, with positions of the input."""
        self.commit_writer.take_snapshot(positions, self._now())

    def commit(self, positions: Mapping[str, bytes]) -> int:
        """Commit everything, with positions of the input; return how many commits were finished."""
        return self.commit_writer.flush(positions, self._now())

    def gauges(self) -> EngineGauges:
        """Return the values that metrics report."""
        queue = self.update_queue.num_waiting + self.update_queue.num_running
        return EngineGauges(self.sessions.hits, self.sessions.misses, queue, len(self._users))


def _id_too_long(name: str) -> RejectedInput:
    return RejectedInput(
        MALFORMED, f"the user's id {name[:20]!r}.. is longer than {MAX_USER_BYTES} bytes"
    )
