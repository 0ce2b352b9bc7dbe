"""What --suite=stream feeds to a stream: users with histories in a store, and lines by the clock."""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.methods.codec import encode
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.stream.catalogue import Catalogue
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import Store
from rec2pm_jax.stream.stores.record import RecordFormat
from rec2pm_jax.stream.users.mutable_user import MutableUser

_PUT = 20_000  # records of a transaction
_MEMORIES = 64  # distinct ones


class Population(NamedTuple):
    """Attributes: users, items, mean_history: events per user before the measurement."""

    users: int
    items: int
    mean_history: int

    def draw_users(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Users of events, by the law of the suite."""
        return (self.users * rng.random(count) ** 2).astype(np.int64)

    def draw_items(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return 1 + (self.items * rng.random(count) ** 3).astype(np.int64)


class _Items:
    """As much of `data.dataset.Items` as a stream needs."""

    def __init__(self, count: int):
        self.raw_ids = self.titles = ["", *(str(i) for i in range(1, count + 1))]
        self.counts = np.ones(count + 1, np.int64)
        self.id_of = {raw: i for i, raw in enumerate(self.raw_ids) if i}.get


def make_recommender(config: Config, items: int) -> Recommender:
    """A model with random parameters over items "1", "2", ..."""
    method = make_method(config, items)
    params = jax.jit(method.init)(jax.random.key(0))
    catalogue = Catalogue(_Items(items), (), 0, uses_times=False, uses_types=False)
    return Recommender(method, params, catalogue)


def write_history(
    store: Store, form: RecordFormat, recommender: Recommender, population: Population
) -> int:
    """Puts every user into a store, in no order; returns how many have memory (random numbers)."""
    rng = np.random.default_rng(0)
    counts = np.zeros(population.users, np.int64)
    for _ in range(population.mean_history):
        drawn = population.draw_users(rng, population.users)
        counts += np.bincount(drawn, minlength=population.users)
    plan = recommender.method.plan(counts)
    numbers = rng.normal(size=(_MEMORIES, form.rows, form.dim)).astype(np.float32)
    memories = [row.tobytes() for row in encode(numbers, form.kind)]
    records: dict[str, bytes] = {}
    for user in rng.permutation(population.users).tolist():
        live = MutableUser()
        live.events, live.segments = int(counts[user]), int(plan.updates[user])
        if live.segments:
            live.groups, live.memory = 1, memories[user % _MEMORIES]
        kept = live.events - int(plan.start[user])
        live.pending = array("i", population.draw_items(rng, kept).astype(np.int32).tobytes())
        records[f"u{user}"] = form.encode(f"u{user}", live)
        if len(records) == _PUT:
            store.put(records, {})
            records = {}
    store.put(records, {})
    return int(np.count_nonzero(plan.updates))


def event_lines(population: Population, count: int, seed: int, first: int = 0) -> list[bytes]:
    """Events as a stream brings them, a hundred in a second of theirs, from number `first` on."""
    rng = np.random.default_rng(seed)
    users = population.draw_users(rng, count).tolist()
    items = population.draw_items(rng, count).tolist()
    return [
        b'{"user": "u%d", "item": "%d", "time": %d}\n' % (user, item, 1_700_000_000 + n // 100)
        for n, (user, item) in enumerate(zip(users, items, strict=True), start=first)
    ]


class Listed:
    """Lines that are all there from the start; see `stream.lines.sources.Source`."""

    def __init__(self, lines: list[bytes]):
        self.done = False
        self._lines, self._next = lines, 0

    def read(self, max_lines: int, timeout_s: float) -> list[bytes]:
        taken = self._lines[self._next : self._next + max_lines]
        self._next += len(taken)
        self.done = not taken
        return taken

    def positions(self) -> Mapping[str, bytes]:
        return {"input:generated": str(self._next).encode()}

    def close(self) -> None:
        pass


class Paced(Listed):
    """Lines that come by the clock, and how long those who ask wait.

    Attributes:
      latencies_ms: from the instant a request was due until its answer.
    """

    def __init__(self, lines: list[bytes], rate: float):
        super().__init__(lines)
        self.latencies_ms: list[float] = []
        self._rate, self._began = rate, None
        self._asked = (n for n, line in enumerate(lines) if b'"recommend"' in line)

    def read(self, max_lines: int, timeout_s: float) -> list[bytes]:
        now = time.perf_counter()
        if self._began is None:
            self._began = now
        there = int((now - self._began) * self._rate) - self._next
        if there <= 0 and self._next < len(self._lines):
            time.sleep(min(timeout_s, 1 / self._rate))
            return []
        return super().read(min(max_lines, max(there, 1)), timeout_s)

    def answered(self, line: str) -> None:
        """Takes the next answer."""
        due = self._began + (next(self._asked) + 1) / self._rate
        self.latencies_ms.append((time.perf_counter() - due) * 1e3)
