"""Input of --suite=stream: users with histories in a store, and lines by the clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.methods.state_format import StateFormat
from rec2pm_jax.stream.catalogue import Catalogue
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import Store
from rec2pm_jax.stream.stores.record import RecordFormat
from rec2pm_jax.stream.users.mutable_user import MutableUser
from rec2pm_jax.stream.users.pending import PendingEvents
from rec2pm_jax.typing import Array, ExactMemory, State

TIME_ORIGIN = 1_600_000_000  # seconds since 1970; histories begin here
_NOW = 1_700_000_000  # when the measured events begin
_DAY = 24 * 3600
_PUT = 20_000  # records per transaction
_MEMORIES = 64  # distinct memories


class Population(NamedTuple):
    """Users and items, and how often each occurs.

    Attributes:
      users: number of users.
      items: number of items.
      mean_history: events per user before the measurement.
    """

    users: int
    items: int
    mean_history: int

    def draw_users(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return the users of events, int [count], drawn as the suite describes."""
        return (self.users * rng.random(count) ** 2).astype(np.int64)

    def draw_items(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return the items of events, int [count], 1 and up."""
        return 1 + (self.items * rng.random(count) ** 3).astype(np.int64)


def draw_gaps(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return seconds between events, int [count]: half are 0, the others have a mean of a day."""
    return (rng.exponential(_DAY, count) * (rng.random(count) < 0.5)).astype(np.int64)


class _Items:
    """The part of `data.dataset.Items` that a stream uses."""

    def __init__(self, count: int):
        self.raw_ids = self.titles = ["", *(str(i) for i in range(1, count + 1))]
        self.counts = np.ones(count + 1, np.int64)
        self.id_of = {raw: i for i, raw in enumerate(self.raw_ids) if i}.get


def make_recommender(config: Config, items: int) -> Recommender:
    """Return a model with random parameters over items "1", "2", ..."""
    method = make_method(config, items)
    params = jax.jit(method.init)(jax.random.key(0))
    table: Any = _Items(items)
    times = config.reads_times
    catalogue = Catalogue(table, (), TIME_ORIGIN, uses_times=times, uses_types=False)
    return Recommender(method, params, catalogue)


def write_history(
    store: Store, form: RecordFormat, recommender: Recommender, population: Population
) -> int:
    """Put every user into a store in random order; return how many have a (random) memory."""
    rng = np.random.default_rng(0)
    counts = np.zeros(population.users, np.int64)
    for _ in range(population.mean_history):
        drawn = population.draw_users(rng, population.users)
        counts += np.bincount(drawn, minlength=population.users)
    plan = recommender.method.plan(counts)
    states = _random_states(rng, form.states)
    memories = [row.tobytes() for row in form.states.encode(states)]
    put: dict[str, MutableUser] = {}

    def write() -> None:
        records, states = form.encode_changed(put)
        store.put(records, {}, states)
        put.clear()

    for user in rng.permutation(population.users).tolist():
        live = form.new_user()
        live.events, live.segments = int(counts[user]), int(plan.updates[user])
        if live.segments:
            live.groups, live.memory = 1, memories[user % _MEMORIES]
            live.state_changed = True
        kept = live.events - int(plan.start[user])
        pending = np.zeros((kept, form.width), np.int64)
        pending[:, 0] = population.draw_items(rng, kept)
        if form.width > 1:
            pending[:, 1] = draw_gaps(rng, kept)
            live.last_time = _NOW - _DAY
        live.pending = PendingEvents.of(pending)
        put[f"u{user}"] = live
        if len(put) == _PUT:
            write()
    write()
    return int(np.count_nonzero(plan.updates))


def _random_states(rng: np.random.Generator, form: StateFormat) -> State:
    """Return states with random memories and random items in the exact memory."""
    memory = rng.normal(size=(_MEMORIES, form.slots, form.dim)).astype(np.float32)
    shape = (_MEMORIES, form.entries)
    items = rng.integers(1, form.num_items + 1, shape).astype(np.int32)
    weights = rng.integers(1, 2**16, shape).astype(np.int32)
    none = np.zeros(_MEMORIES, np.int32)
    exact: Any = ExactMemory(*cast(tuple[Array, Array, Array], (items, weights, items)))
    return State(cast(Array, memory), cast(Array, none), cast(Array, none), exact)


def line_time(number: int) -> int:
    """Return the time stamp of a line: there are a hundred per second."""
    return _NOW + number // 100


def make_event_lines(population: Population, count: int, seed: int, first: int = 0) -> list[bytes]:
    """Return lines of events from number `first` on, see `line_time`."""
    rng = np.random.default_rng(seed)
    users = population.draw_users(rng, count).tolist()
    items = population.draw_items(rng, count).tolist()
    return [
        b'{"user": "u%d", "item": "%d", "time": %d}\n' % (user, item, line_time(n))
        for n, (user, item) in enumerate(zip(users, items, strict=True), start=first)
    ]


class Listed:
    """A source whose lines are all available from the start; see `stream.lines.sources.Source`."""

    def __init__(self, lines: list[bytes]):
        self.done = False
        self._lines, self._next = lines, 0

    def read(self, max_lines: int, timeout_s: float) -> list[bytes]:
        """Return the next lines, at most `max_lines`."""
        taken = self._lines[self._next : self._next + max_lines]
        self._next += len(taken)
        self.done = not taken
        return taken

    def positions(self) -> Mapping[str, bytes]:
        return {"input:generated": str(self._next).encode()}

    def notes(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


class Paced(Listed):
    """A source whose lines become available by the clock; it measures the latency of requests.

    Attributes:
      latencies_ms: from the scheduled time of each request until its answer.
    """

    def __init__(self, lines: list[bytes], rate: float):
        super().__init__(lines)
        self.latencies_ms: list[float] = []
        self._rate = rate
        self._began = 0.0  # set by the first read
        self._asked = (n for n, line in enumerate(lines) if b'"recommend"' in line)

    def read(self, max_lines: int, timeout_s: float) -> list[bytes]:
        """Return at most `max_lines` lines whose time has come; wait for the next one if none has."""
        now = time.perf_counter()
        if not self._began:
            self._began = now
        available = int((now - self._began) * self._rate) - self._next
        if available <= 0 and self._next < len(self._lines):
            time.sleep(min(timeout_s, 1 / self._rate))
            return []
        return super().read(min(max_lines, max(available, 1)), timeout_s)

    def record_answer(self, line: str) -> None:
        """Record the latency of the next request, which is answered now."""
        scheduled = self._began + (next(self._asked) + 1) / self._rate
        self.latencies_ms.append((time.perf_counter() - scheduled) * 1e3)
