"""A service inside the process of a test, on a real socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve.admission import Admission
from rec2pm_jax.serve.app import make_app
from rec2pm_jax.serve.engine_thread import EngineThread
from rec2pm_jax.serve.journal import Journal
from rec2pm_jax.serve.metrics import ServiceMetrics
from rec2pm_jax.serve.opening import Opened
from rec2pm_jax.serve.process import start_server
from rec2pm_jax.serve.service import Service
from rec2pm_jax.serve.swap import Swapper
from rec2pm_jax.stream.driver import Driver, Intervals
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.opening import ModelPaths


class LocalService:
    """What a test needs of a service.

    Attributes:
      service, thread: its parts.
      port: where it listens.
    """

    def __init__(self, service: Service, port: int):
        self.service, self.thread, self.port = service, service.thread, port

    def call(
        self, method: str, path: str, body: Any = None, headers: dict | None = None
    ) -> tuple[int, Any]:
        """Return the status and the JSON of one request; a body of bytes is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        self.headers = dict(response.getheaders())
        text = response.read()
        connection.close()
        is_json = "json" in self.headers.get("content-type", "")
        return response.status, json.loads(text) if is_json else text.decode()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return self.call("POST", path, body)

    def get(self, path: str) -> tuple[int, Any]:
        return self.call("GET", path)


@contextlib.contextmanager
def serve_locally(
    engine: Engine,
    *,
    journal: Journal | None = None,
    commit_s: float = 0.01,
    ack: str = "commit",
    max_waiting: int = 100,
    paths: ModelPaths = ModelPaths(""),  # noqa: B008
    address: str = "",
) -> Iterator[LocalService]:
    """Serve an engine until the block ends; then commit."""
    driver = Driver(engine, Intervals(commit_s, report_s=float("inf")))
    thread = EngineThread(driver, journal=journal, waits_for_commit=ack == "commit")
    admission = Admission(max_waiting)
    opened = Opened(engine, None, address, 0)  # type: ignore[arg-type]
    service = Service(
        thread,
        admission,
        ServiceMetrics(thread, admission),
        1 << 16,
        Swapper(thread, paths, address, opened, engine.options),
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        stop = start_server(service, make_app(service), listener)
        try:
            yield LocalService(service, listener.getsockname()[1])
        finally:
            with contextlib.suppress(*([UserError] if thread.failure else [])):
                stop()
