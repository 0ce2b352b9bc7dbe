"""--suite=stream: events of many users into an embedded store, with int8 memory and commits.

How active users are: the user of an event is floor(N u^2) with u uniform in (0, 1), of N users. So the
share of the first x users is sqrt(x): a tenth of the users make a third of the events, a hundredth a
tenth of them (rank-activity exponent 1/2, density ~ x^(-1/2)). Items are drawn likewise with u^3.

Three phases use the same store:

1. history, not timed: the store gets every user with a history drawn by the same law. A user's record
   holds the pending events, and a random memory if the history is long enough for an update. Then the
   store is closed; opening it up to the first user read is `open_s`.
2. throughput: lines are parsed, applied, folded and committed at full speed.
3. latency: lines arrive by the clock at half of the target rate. One line in `_EVERY` is a request, of
   a user from a pool of recent askers. Latency counts from the scheduled time of the request.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from launch.benchmarks import settings
from launch.benchmarks.stream_load import (
    Listed,
    Paced,
    Population,
    make_event_lines,
    make_recommender,
    write_history,
)
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.metrics import percentiles
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.process import configure_interpreter
from rec2pm_jax.stream.runner import Intervals, run_stream
from rec2pm_jax.stream.stores.base import Store
from rec2pm_jax.stream.stores.lmdb_store import LmdbStore
from rec2pm_jax.stream.stores.record import RecordFormat

TARGET_RATE = 30_000  # events/s
POPULATION = Population(users=1_000_000, items=100_000, mean_history=300)
SMOKE_POPULATION = Population(users=2_000, items=settings.SMOKE_ITEMS, mean_history=10)
_EVENTS, _SMOKE_EVENTS = 1_000_000, 5_000  # of the second phase
_LATENCY_S, _SMOKE_LATENCY_S = 20.0, 0.5
_EVERY = 150  # lines per request
_ASKERS = 64


def measure_rows(smoke: bool) -> Iterator[dict[str, Any]]:
    """Yield one row, see the module; smoke: with few users."""
    population = SMOKE_POPULATION if smoke else POPULATION
    model = settings.SMOKE_SASREC if smoke else settings.SASREC
    recommender = make_recommender(
        settings.make_config("rec2pm_o", model, smoke=smoke), population.items
    )
    options = EngineOptions(memory="int8")
    with tempfile.TemporaryDirectory() as directory:
        store = LmdbStore(directory)
        form = Engine(recommender, store, options).record_format
        with_memory = write_history(store, form, recommender, population)
        store.close()

        began = time.perf_counter()
        store = LmdbStore(directory)
        engine = Engine(recommender, store, options)
        engine.get_user("u0")
        open_s = time.perf_counter() - began

        engine.warm_up()
        configure_interpreter()
        lines = make_event_lines(population, _SMOKE_EVENTS if smoke else _EVENTS, seed=1)
        before = _measure_cpu_s()
        fast = run_stream(engine, Listed(lines), lambda line: None)
        cpu = _measure_cpu_s() - before

        rate = TARGET_RATE / 2
        paced = Paced(
            _make_lines(
                population, int(rate * (_SMOKE_LATENCY_S if smoke else _LATENCY_S)), seed=2
            ),
            rate,
        )
        before = _measure_cpu_s()
        answered = run_stream(engine, paced, paced.record_answer, intervals=Intervals())
        paced_cpu = _measure_cpu_s() - before
        size = store.size()
        pending, record_bytes = _measure_contents(store, form)
        store.compact()
        compacted = store.size()
        store.close()
    yield {
        "name": f"stream/{population.users}",
        "method": "rec2pm",
        "memory": "overwrite",
        "stored_as": options.memory,
        "users": population.users,
        "users_with_memory": with_memory,
        "items": population.items,
        "events_per_s": round(fast.events / fast.seconds),
        "updates_per_s": round(fast.updates / fast.seconds, 1),
        "commits": fast.commits,
        "wall_s": round(fast.seconds, 2),
        "cpu_s": round(cpu, 2),
        "latency_ms": percentiles(paced.latencies_ms),
        "latency_requests": answered.answers,
        "latency_events_per_s": round(answered.events / answered.seconds),
        "latency_cpu_share": round(paced_cpu / answered.seconds, 3),
        "read_ms": percentiles(answered.read_ms),
        "hit_rate": round(engine.sessions.hits / max(answered.answers, 1), 4),
        "disk_bytes_per_user": round(size / population.users, 1),
        "compacted_bytes_per_user": round(compacted / population.users, 1),
        "record_bytes_per_user": round(record_bytes / population.users, 1),
        "bytes_per_user_floor": round(272 + 48 + 6 * pending / population.users, 1),
        "open_s": round(open_s, 4),
    }


def _make_lines(population: Population, count: int, seed: int) -> list[bytes]:
    """Return lines of events with a request in every `_EVERY` of them."""
    lines = make_event_lines(population, count, seed, first=_EVENTS)
    askers = population.draw_users(np.random.default_rng(seed), _ASKERS)
    for n in range(_EVERY - 1, count, _EVERY):
        lines[n] = b'{"user": "u%d", "recommend": 10}\n' % askers[n // _EVERY % _ASKERS]
    return lines


def _measure_contents(store: Store, form: RecordFormat) -> tuple[int, int]:
    """Return the pending events and the bytes of records of all users."""
    pending = total = 0
    for user, record in store.items():
        total += len(record)
        decoded = form.decode(user, record)
        assert decoded is not None  # written by this run
        pending += len(decoded.pending) // form.width
    return pending, total


def _measure_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
