"""Users by name: events are appended, due segments folded in batches, requests answered."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax

from rec2pm_jax.stream import batches
from rec2pm_jax.stream.commits import Commits
from rec2pm_jax.stream.events import DUPLICATE, FAR_FUTURE, MALFORMED, Event, Refused
from rec2pm_jax.stream.folding import Folding
from rec2pm_jax.stream.memories import Memories
from rec2pm_jax.stream.mutable_user import MutableUser
from rec2pm_jax.stream.recommender import Recommendation, Recommender
from rec2pm_jax.stream.sessions import Sessions
from rec2pm_jax.stream.store import MAX_USER_BYTES, Store, claim
from rec2pm_jax.stream.user import UserState
from rec2pm_jax.stream.user_cache import UserCache

DAY = 86_400


class Options(NamedTuple):
    """Attributes:
    memory: format that memory is kept in, also between updates: one of `codec.FORMATS`.
    max_live: users held in the process; of those that are in the store the oldest are let go.
    sessions: users whose keys and values are kept between their requests.
    lifetime: seconds until a user without new events expires; 0: never.
    max_ahead: seconds that an event may lie in the future.
    worker: I/N, which of N workers this is.
    """

    memory: str = "float32"
    max_live: int = 200_000
    sessions: int = 64
    lifetime: int = 0
    max_ahead: int = DAY
    worker: str = "0/1"


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

    def __init__(
        self,
        recommender: Recommender,
        store: Store,
        options: Options = Options(),  # noqa: B008 (immutable)
        now: Callable[[], float] = time.time,
    ):
        """Raises: UserError where the store holds states of another model or other options."""
        self.recommender, self.store, self.options, self._now = recommender, store, options, now
        method = recommender.method
        self._memories = Memories(recommender, options.memory)
        self._width, self.form = self._memories.width, self._memories.form
        claim(
            store,
            {
                "model": recommender.identity.model,
                "config_hash": recommender.identity.config_hash,
                "memory": options.memory,
                "workers": int(options.worker.split("/")[1]),
            },
        )
        self.commits = Commits(store, self.form, options.lifetime)
        self.sessions = Sessions(
            method, recommender.params, recommender.scored_by, options.sessions
        )
        self.folding = Folding(method, self._memories, self.commits.touch)
        self._live = UserCache()

    def warm_up(self, k: int = 10) -> None:
        """Compiles what a stream with requests for up to `k` items will need, so that no user waits."""
        self._memories.warm_up()
        method, params = self.recommender.method, self.recommender.params
        trial = Sessions(method, params, self.recommender.scored_by, 1)
        asked = 0 if self.recommender.catalogue.uses_times else None
        deep = batches.padded_k(k, method.num_items)
        live = MutableUser()
        for count in (1, 1, 2, 4):  # opened, read again, one event more, several
            live.pending = array("i", [1] * count * self._width)
            raw = self._memories.raw(live)
            trial.best("", 0, lambda: self._memories.states([live]), raw, asked, deep)

    # --- events ---

    def ingest(self, events: Sequence[Event]) -> Ingested:
        """`apply`, then `fold` until nothing is due. How a stream is cut changes no state."""
        applied, refused = self.apply(events)
        before = self.folding.folded
        self.fold()
        return Ingested(applied, self.folding.folded - before, refused)

    def apply(self, events: Sequence[Event]) -> tuple[int, list[tuple[int, Refused]]]:
        """Appends events in order; returns how many, and (index, why) of those left out.

        Left out are unknown items and event types, fields the model needs but that are missing,
        times before that of the user's last event (equal times are in order) or too far in the
        future, and events whose `seq` is not above that of the user's newest.
        """
        refused: list[tuple[int, Refused]] = []
        self._load({event.user for event in events})
        latest = self._now() + self.options.max_ahead
        live_users, touch, code = self._live, self.commits.touch, self.recommender.code
        full, packed = self._memories.full, self._packed
        for index, event in enumerate(events):
            name, _, when, _, seq = event
            try:
                if name not in live_users:
                    raise _too_long(name)
                live = live_users[name]
                if seq is not None and seq <= live.watermark:
                    raise Refused(DUPLICATE, f"seq {seq} is not above {live.watermark}")
                if when is not None and when > latest:
                    raise Refused(FAR_FUTURE, f"time {when} lies in the future")
                fields = code(event, live.last_time)
            except Refused as error:
                refused.append((index, error))
                continue
            touch(name, live)
            live.events += 1
            if when is not None:
                live.last_time = when
            if seq is not None:
                live.watermark = seq
            pending = live.pending
            if packed is None:
                pending.append(fields[0])
            else:
                pending.extend(packed(fields))
            if len(pending) >= full:
                self.folding.add(name, live)
        return len(events) - len(refused), refused

    @property
    def _packed(self):
        """Which fields of a coded event are pending; None: the item alone."""
        catalogue = self.recommender.catalogue
        if self._width == 3:
            return tuple
        if catalogue.uses_times:
            return lambda fields: fields[:2]
        return (lambda fields: fields[::2]) if catalogue.uses_types else None

    def _load(self, names: Iterable[str]) -> None:
        """Brings users into the process; new ones start empty. Ids that are too long stay out."""
        live, now = self._live, self._now()
        missing = [
            name
            for name in names
            if name not in live
            and (len(name) * 4 <= MAX_USER_BYTES or len(name.encode()) <= MAX_USER_BYTES)
        ]
        for name, record in zip(missing, self.store.get(missing), strict=True):
            user = None if record is None else self.form.decode(name, record, now)
            user = MutableUser() if user is None else user
            live.add(name, user)
            if len(user.pending) >= self._memories.full:
                self.folding.add(name, user)

    def trim(self, most: int) -> None:
        """Lets users go who came first and are in the store, until `max_live` are left.

        Looks at `most` of them, as it stands in the way of requests; who is not settled yet comes last.
        """
        for _ in range(min(most, len(self._live) - self.options.max_live)):
            name, live = self._live.pop()
            if self.commits.holds(name) or self.folding.holds(name):
                self._live.add(name, live)

    # --- memory ---

    def fold(self) -> None:
        """Folds until nothing is due."""
        self.folding.settle()
        while self.folding.due:
            self.folding.begin(batches.MAX_BATCH)
            self.folding.settle()

    def _current(self, name: str) -> MutableUser:
        """A user with nothing due."""
        self._load([name])
        live = self._live.get(name)
        if live is None:
            raise _too_long(name)
        self.folding.finish(name, live)
        return live

    # --- answers ---

    def user(self, name: str) -> UserState:
        """The state of a user; that of a new user for one never seen."""
        live = self._current(name)
        state = jax.tree.map(lambda rows: rows[0], self._memories.states([live]))
        return UserState(state, self._memories.raw(live), live.events, live.last_time)

    def recommend(
        self,
        user: str,
        k: int,
        exclude: Iterable[str] = (),
        time: int | None = None,
    ) -> Answer:
        """What to recommend to a user by name; see `Recommender.recommend`."""
        live = self._current(user)

        def best(request_time, deep):
            return self.sessions.best(
                user,
                live.events - len(live.pending) // self._width,
                lambda: self._memories.states([live]),
                self._memories.raw(live),
                request_time,
                deep,
            )

        last = live.pending[-self._width + 1] if live.pending and self._width > 1 else None
        items = self.recommender.answer(best if live.events else None, last, k, exclude, time)
        return Answer(user, items, live.events, live.segments)

    @property
    def live_users(self) -> int:
        """Users held in the process."""
        return len(self._live)

    def snapshot(self, marks: Mapping[str, bytes]) -> None:
        """Begins a commit of all users as they are, with marks of the input; see `Commits`."""
        self.commits.begin(marks, self._now())

    def commit(self, marks: Mapping[str, bytes]) -> int:
        """Has everything in the store, with marks of the input, when it returns; see `Commits`."""
        return self.commits.flush(marks, self._now())


def _too_long(name: str) -> Refused:
    return Refused(
        MALFORMED, f"the user's id {name[:20]!r}.. is longer than {MAX_USER_BYTES} bytes"
    )
