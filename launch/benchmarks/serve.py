"""--suite=serve: the service over HTTP, beside the engine's own reads and `launch.stream`.

The store is that of --suite=stream: a million users with histories, 100,000 items, int8 memory. A
client in another process keeps `_CONNECTIONS` connections open. Phases:

1. capacity: every connection asks again as soon as it has its answer.
2. at 50 % and at 90 % of the capacity: requests are due by the clock, and latency counts from then. The
   row names the engine's own read in the same phase, what HTTP adds to it at p50 (`http_ms_p50`), and
   the processor time of the thread that speaks HTTP (`http_cpu_ms`), which a busy machine changes less.
3. events: bodies of `_EVENTS_PER_BODY` events, acknowledged after their commit.
4. stream: the lines of a stream at the rate of the second phase, answered by `launch.stream`'s loop.
"""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from launch.benchmarks import settings
from launch.benchmarks.serve_load import Load, Sent, send_load
from launch.benchmarks.stream import POPULATION, SMOKE_POPULATION
from launch.benchmarks.stream_load import (
    Paced,
    Population,
    make_event_lines,
    make_recommender,
    write_history,
)
from rec2pm_jax.stream.driver import Driver, Intervals
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.metrics import percentiles
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.process import configure_interpreter
from rec2pm_jax.stream.runner import run_stream
from rec2pm_jax.stream.stores.lmdb_store import LmdbStore

_CONNECTIONS = 16
_EVENTS_PER_BODY = 100
_ASKERS = 64
_SECONDS, _SMOKE_SECONDS = 20.0, 0.5
_COMMIT_S = 0.1


def measure_rows(smoke: bool) -> Iterator[dict[str, Any]]:
    """Yield a row per phase, see the module; smoke: with few users."""
    population = SMOKE_POPULATION if smoke else POPULATION
    seconds = _SMOKE_SECONDS if smoke else _SECONDS
    model = settings.SMOKE_SASREC if smoke else settings.SASREC
    recommender = make_recommender(
        settings.make_config("rec2pm_o", model, smoke=smoke), population.items
    )
    options = EngineOptions(memory="int8")
    with tempfile.TemporaryDirectory() as directory:
        store = LmdbStore(directory)
        form = Engine(recommender, store, options).record_format
        write_history(store, form, recommender, population)
        engine = Engine(recommender, store, options)
        engine.warm_up(together=True)
        configure_interpreter()
        askers = population.draw_users(np.random.default_rng(1), _ASKERS)
        bodies = [json.dumps({"user": f"u{user}", "recommend": 10}) for user in askers]
        with _serve(engine) as (port, driver):
            load = Load(port, "/recommend", bodies, seconds, _CONNECTIONS)
            send_load(load._replace(seconds=seconds / 4))  # the sessions of the askers are opened
            capacity = _measure(driver, load, "capacity")
            yield capacity
            for share in (0.5, 0.9):
                rate = share * capacity["per_s"]
                yield _measure(driver, load._replace(rate=rate), f"{share:.0%}")
            events = _make_event_bodies(population, seconds)
            row = _measure(driver, Load(port, "/events", events, seconds, _CONNECTIONS), "events")
            yield row | {"events_per_s": round(row["per_s"] * _EVENTS_PER_BODY)}
        rate = capacity["per_s"] / 2
        lines = [body.encode() + b"\n" for body in bodies]
        count = int(rate * seconds)
        paced = Paced([lines[n % _ASKERS] for n in range(count)], rate)
        summary = run_stream(engine, paced, paced.record_answer, intervals=Intervals(_COMMIT_S))
        yield {
            "name": "stream/50%",
            "per_s": round(summary.answers / summary.seconds, 1),
            "latency_ms": percentiles(paced.latencies_ms),
            "read_ms": percentiles(summary.read_ms),
        }
        store.close()


@contextlib.contextmanager
def _serve(engine: Engine) -> Iterator[tuple[int, Driver]]:
    """Serve an engine from threads of this process; yield the port and the driver."""
    from rec2pm_jax.serve.process import make_service, start_server  # of an extra

    driver = Driver(engine, Intervals(_COMMIT_S, report_s=float("inf")))
    service, app = make_service(driver)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        stop = start_server(service, app, listener)
        try:
            yield listener.getsockname()[1], driver
        finally:
            stop()


def _measure(driver: Driver, load: Load, name: str) -> dict[str, Any]:
    """Return the row of one phase."""
    driver.summary.read_ms.clear()
    before = _thread_cpu_s()
    sent: Sent = send_load(load)
    cpu_ms = (_thread_cpu_s() - before) * 1e3 / max(1, sum(sent.statuses.values()))
    latency, read = sent.latency_ms, percentiles(list(driver.summary.read_ms))
    row = {
        "name": f"serve/{name}",
        "per_s": round(sent.per_s, 1),
        "statuses": sent.statuses,
        "latency_ms": latency,
        "http_cpu_ms": round(cpu_ms, 3),
    }
    if read and latency:
        row |= {"read_ms": read, "http_ms_p50": round(latency["p50"] - read["p50"], 3)}
    return row


def _thread_cpu_s() -> float:
    """Return the processor time of the thread that speaks HTTP; a busy machine does not change it."""
    [thread] = [x for x in threading.enumerate() if x.name == "http" and x.ident]
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))


def _make_event_bodies(population: Population, seconds: float) -> list[str]:
    count = int(min(2_000, 100 * seconds)) * _EVENTS_PER_BODY
    lines = [line.decode().rstrip() for line in make_event_lines(population, count, seed=3)]
    return [
        '{"events": [' + ", ".join(lines[n : n + _EVENTS_PER_BODY]) + "]}"
        for n in range(0, count, _EVENTS_PER_BODY)
    ]
