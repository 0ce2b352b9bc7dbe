"""The process that serves: uvicorn in front, the engine's thread behind, an orderly end."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve.service import Service

IDLE_S = 75  # an idle connection is closed after so long; proxies keep theirs for up to 60 s
DRAIN_S = 30  # at the end, requests get so long to be complete
BACKLOG = 2048  # connections that the system accepts ahead of us


def run_service(
    service: Service,
    app: Starlette,
    host: str,
    port: int,
    on_ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until the engine fails; then commit.

    At the end no new connection is accepted, requests under way are answered, and everything is
    committed. A second signal ends the process at once.

    Args:
      port: 0 for a free one.
      on_ready: called with the port once connections are accepted.

    Raises:
      UserError: the address cannot be used, or the store could not keep what was applied.
    """
    allow_many_connections()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=DRAIN_S,
        backlog=BACKLOG,
        lifespan="off",
        server_header=False,
    )
    server = _Server(config, on_ready)
    try:
        socket = config.bind_socket()
    except SystemExit:
        raise UserError(
            f"Cannot listen at {host}:{port}: choose another --host or --port; 0 is a free one."
        ) from None

    def end() -> None:
        server.should_exit = True

    service.thread.start(on_end=end)
    try:
        server.run(sockets=[socket])
    finally:
        service.thread.stop()


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[int], None]):
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self._on_ready(sockets[0].getsockname()[1])


def allow_many_connections() -> None:
    """Raise the limit of open files to the largest that the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
