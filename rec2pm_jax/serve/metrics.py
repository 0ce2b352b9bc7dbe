"""What the service counts and times, in the format of Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from rec2pm_jax.serve.admission import Admission
from rec2pm_jax.serve.engine_thread import EngineThread

METRICS_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_PATHS = ("/events", "/recommend", "/swap", "/health", "/metrics", "/openapi.json")


class ServiceMetrics:
    """The registry of one service: the totals of the stream, and times of requests by route.

    Attributes:
      rejected: events that the engine never got, as they are malformed or another worker's; by reason.
    """

    def __init__(self, thread: EngineThread, admission: Admission):
        """Read the totals of a thread and of the admission at each call of `render`."""
        self.rejected: Counter[str] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(_Totals(thread, admission, self.rejected))
        self._seconds = Histogram(
            "rec2pm_http_request_seconds",
            "Seconds from the headers of a request to the end of its answer.",
            ("path", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        if path.startswith("/users/"):
            path = "/users/ID"
        elif path not in _PATHS:  # callers choose paths, and each would be a series
            path = "other"
        self._seconds.labels(path, str(status)).observe(seconds)

    def render(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self._registry)


class _Totals(Collector):
    """Reads what the engine's thread did; the thread may be at work meanwhile."""

    def __init__(self, thread: EngineThread, admission: Admission, rejected: Counter[str]):
        self._thread, self._admission, self._rejected = thread, admission, rejected

    def collect(self) -> Iterator[Any]:
        driver, admission = self._thread.driver, self._admission
        summary, gauges = driver.summary, driver.engine.gauges()
        for name, text, total in (
            ("rec2pm_events_total", "Events applied.", summary.events),
            (
                "rec2pm_unknown_items_total",
                "Those of unknown items.",
                summary.unknown_items,
            ),
            ("rec2pm_answers_total", "Requests answered with recommendations.", summary.answers),
            ("rec2pm_popular_answers_total", "Those of users without events.", summary.popular),
            ("rec2pm_updates_total", "Memory updates computed.", driver.count_updates()),
            ("rec2pm_commits_total", "Commits finished.", summary.commits),
            ("rec2pm_refused_requests_total", "Requests refused with 429.", admission.refused),
        ):
            yield CounterMetricFamily(name, text, value=total)
        rejected = CounterMetricFamily(
            "rec2pm_rejected_events_total", "Events that could not be used.", labels=["reason"]
        )
        skipped = Counter(dict(summary.skipped))  # a copy, as the thread may count meanwhile
        for reason, count in (self._rejected + skipped).items():
            rejected.add_metric([reason], count)
        yield rejected
        for name, text, value in (
            ("rec2pm_update_queue", "Users whose memory is being updated or waits.", gauges.queue),
            ("rec2pm_live_users", "Users held in the process.", gauges.cached_users),
            ("rec2pm_session_hits", "Reads from an open session.", gauges.hits),
            ("rec2pm_session_misses", "Reads that opened one.", gauges.misses),
            ("rec2pm_waiting_requests", "Requests without an answer.", admission.waiting),
            ("rec2pm_waiting_bytes", "Bytes of their bodies.", admission.waiting_bytes),
        ):
            yield GaugeMetricFamily(name, text, value=value)


class TimeRequests:
    """ASGI middleware that times every request."""

    def __init__(self, app: Any, metrics: ServiceMetrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def note_status(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            self._metrics.observe(scope["path"], status, time.perf_counter() - began)
