"""--suite=stream: events of many users into an embedded store, with int8 memory and commits.

How active users are: the user of an event is floor(N u^2) with u uniform in (0, 1), of N users. So the
share of the first x users is sqrt(x): a tenth of the users make a third of the events, a hundredth a
tenth of them (rank-activity exponent 1/2, density ~ x^(-1/2)). Items are drawn likewise with u^3.

Four phases use the same store:

1. history, not timed: the store gets every user with a history drawn by the same law. A user's record
   holds the pending events, and a random memory if the history is long enough for an update. Then the
   store is closed; opening it up to the first user read is `open_s`.
2. throughput: events are parsed, applied, folded and committed at full speed.
3. capacity: the same, where one line in `_EVERY` is a request of a user from a pool of recent askers.
4. latency: such lines arrive by the clock, at each of `SHARES` of that capacity, `_RUNS` times.
   Latency counts from the scheduled time of a request. A row has the median over the runs of each
   percentile, and the percentiles of every run.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from launch.benchmarks import settings
from launch.benchmarks.stream_load import (
    Listed,
    Paced,
    Population,
    line_time,
    make_event_lines,
    make_recommender,
    write_history,
)
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.metrics import percentiles
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.process import configure_interpreter
from rec2pm_jax.stream.runner import Intervals, run_stream
from rec2pm_jax.stream.stores.lmdb_store import LmdbStore

POPULATION = Population(users=1_000_000, items=100_000, mean_history=300)
SMOKE_POPULATION = Population(users=2_000, items=settings.SMOKE_ITEMS, mean_history=10)
SHARES = (0.25, 0.5, 0.75, 0.9)  # of the capacity
_RUNS, _SMOKE_RUNS = 3, 1
_EVENTS, _SMOKE_EVENTS = 1_000_000, 5_000  # of the second phase; the third has half as many lines
_LATENCY_S, _SMOKE_LATENCY_S = 10.0, 0.5  # of one run
_EVERY = 150  # lines per request
_ASKERS = 64
_COUNTED = 10_000  # records at a time


def measure_rows(smoke: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for the stream as a whole and one for each share; smoke: with few users."""
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
        count = _SMOKE_EVENTS if smoke else _EVENTS
        lines = make_event_lines(population, count, seed=1)
        before = _measure_cpu_s()
        fast = run_stream(engine, Listed(lines), lambda line: None)
        cpu = _measure_cpu_s() - before

        lines = _make_lines(population, count // 2, first=count)
        mixed = run_stream(engine, Listed(lines), lambda line: None)
        capacity = len(lines) / mixed.seconds
        latencies = _measure_latencies(engine, population, capacity, smoke)

        size = store.size()
        record_bytes = _count_record_bytes(store)
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
        "capacity_lines_per_s": round(capacity),
        "hit_rate": round(
            engine.sessions.hits / (engine.sessions.hits + engine.sessions.misses), 4
        ),
        "disk_bytes_per_user": round(size / population.users, 1),
        "compacted_bytes_per_user": round(compacted / population.users, 1),
        "record_bytes_per_user": round(record_bytes / population.users, 1),
        "open_s": round(open_s, 4),
    }
    yield from latencies


def _measure_latencies(
    engine: Engine, population: Population, capacity: float, smoke: bool
) -> list[dict[str, Any]]:
    """Return a row for each share of the capacity, in lines per second."""
    seconds = _SMOKE_LATENCY_S if smoke else _LATENCY_S
    rows: dict[float, dict[str, Any]] = {
        share: {"name": f"latency/{share:.0%}", "share": share, "runs": []} for share in SHARES
    }
    first = 10 * _EVENTS  # after the events of the other phases
    for _ in range(_SMOKE_RUNS if smoke else _RUNS):
        for share, row in rows.items():
            rate = share * capacity
            lines = _make_lines(population, max(int(rate * seconds), _EVERY), first)
            first += len(lines)
            paced = Paced(lines, rate)
            before = _measure_cpu_s()
            answered = run_stream(engine, paced, paced.record_answer, intervals=Intervals())
            run = {
                "lines_per_s": round(len(lines) / answered.seconds),
                "requests": answered.answers,
                "cpu_share": round((_measure_cpu_s() - before) / answered.seconds, 3),
                "latency_ms": percentiles(paced.latencies_ms),
                "read_ms": percentiles(answered.read_ms),
            }
            row["runs"].append(run)
    for row in rows.values():
        found = [run["latency_ms"] for run in row["runs"]]
        row["latency_ms"] = {name: statistics.median(x[name] for x in found) for name in found[0]}
    return list(rows.values())


def _make_lines(population: Population, count: int, first: int) -> list[bytes]:
    """Return lines from number `first` on: events, with a request in every `_EVERY` of them."""
    lines = make_event_lines(population, count, seed=first, first=first)
    askers = population.draw_users(np.random.default_rng(2), _ASKERS)
    for n in range(_EVERY - 1, count, _EVERY):
        asker, when = askers[n // _EVERY % _ASKERS], line_time(first + n)
        lines[n] = b'{"user": "u%d", "recommend": 10, "time": %d}\n' % (asker, when)
    return lines


def _count_record_bytes(store: LmdbStore) -> int:
    """Return the bytes of all records and states."""
    records, count = store.items(), 0
    while part := dict(islice(records, _COUNTED)):
        states = store.get_states(list(part))
        count += sum(len(value) for value in (*part.values(), *states) if value is not None)
    return count


def _measure_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
