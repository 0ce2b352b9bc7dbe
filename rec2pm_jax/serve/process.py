"""The process that serves: uvicorn in front, the engine's thread behind, an orderly end."""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import uvicorn
from starlette.applications import Starlette

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve.admission import Admission
from rec2pm_jax.serve.app import make_app
from rec2pm_jax.serve.engine_thread import EngineThread
from rec2pm_jax.serve.journal import Journal
from rec2pm_jax.serve.metrics import ServiceMetrics
from rec2pm_jax.serve.opening import check_events, check_journal, open_service
from rec2pm_jax.serve.page_routes import open_page
from rec2pm_jax.serve.service import Service
from rec2pm_jax.serve.swap import Swapper
from rec2pm_jax.stream.driver import Driver, Intervals
from rec2pm_jax.stream.feed import Feed
from rec2pm_jax.stream.lines.sources import open_source
from rec2pm_jax.stream.opening import ModelPaths
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.process import configure_interpreter, watch_stop_signals

IDLE_S = 75  # an idle connection is closed after so long; proxies keep theirs for up to 60 s
DRAIN_S = 30  # at the end, requests get so long to be complete
HTTP_THREAD = "http"  # name of the thread that `start_server` starts
BACKLOG = 2048  # connections that the system accepts ahead of us


class ServiceOptions(NamedTuple):
    """Settings of a service, beside those of its engine.

    Attributes:
      host, port: where it listens; port 0 is a free one.
      events: source that is read beside HTTP, as for `launch.stream`; "" for none.
      journal: directory of the journal; "" for none.
      ack: when events are acknowledged: "commit" for when they are in the store, "received" for when
        they are applied.
      commit_s: seconds between commits.
      max_waiting: requests that may wait.
      max_body_bytes: of one body.
      page: whether there is a page at /.
      compare: directories of other runs that the page compares.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    events: str = ""
    journal: str = ""
    ack: str = "commit"
    commit_s: float = 0.1
    max_waiting: int = 1000
    max_body_bytes: int = 1 << 20
    page: bool = True
    compare: tuple[str, ...] = ()


def serve(
    paths: ModelPaths, store: str, engine_options: EngineOptions, options: ServiceOptions
) -> None:
    """Open a model and its store, and serve until SIGTERM or SIGINT, or until the engine fails.

    Prints to stderr the address once connections are accepted, and a summary at the end.

    Args:
      store: address of the store; "" keeps states in the process.

    Raises:
      UserError: the model, the store or the address cannot be used, or the store could not keep what
        was applied.
    """
    check_journal(options.journal, store)
    check_events(options.events, options.journal, engine_options.worker)
    with contextlib.ExitStack() as stack:
        journal = None
        if options.journal:
            journal = Journal(options.journal, engine_options.worker)
            stack.callback(journal.close)
        listener = stack.enter_context(_listen(options.host, options.port))
        opened = open_service(paths, store, engine_options, journal)
        page = open_page(opened.engine, options.compare) if options.page else []
        configure_interpreter()
        commit_s = options.commit_s if store else float("inf")
        driver = Driver(opened.engine, Intervals(commit_s, report_s=float("inf")))
        stack.callback(lambda: driver.engine.store.close())
        source = feed = None
        if options.events:
            source = open_source(options.events, opened.engine.store, engine_options.worker)
            stack.callback(source.close)
            feed = Feed(driver, source, write=None)
        thread = EngineThread(
            driver,
            opened.items.poll,
            journal=journal,
            waits_for_commit=options.ack == "commit",
            feed=feed,
        )
        admission = Admission(options.max_waiting)
        metrics = ServiceMetrics(thread, admission)
        swapper = Swapper(thread, paths, store, opened, engine_options)
        service = Service(thread, admission, metrics, options.max_body_bytes, swapper)
        del opened  # else this function would keep the first model after a change to another
        run_service(service, make_app(service, page), listener)
    notes = [*swapper.items.notes(), *(source.notes() if source is not None else [])]
    print("\n".join([*driver.summary.format_report(), *notes]), file=sys.stderr)


def run_service(service: Service, app: Starlette, listener: socket.socket) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, or until the engine fails; then commit.

    At the end no new connection is accepted, requests under way are answered, and everything is
    committed. A second signal ends the process at once.

    Raises:
      UserError: the store could not keep what was applied.
    """
    allow_many_connections()
    # Before, a signal ends the process at once: nothing was acknowledged. From here on it is noted, and
    # the server looks for it at its start.
    server = make_server(app, watch_stop_signals())

    def end() -> None:
        server.should_exit = True

    service.thread.start(on_end=end)
    try:
        server.run(sockets=[listener])
    finally:
        service.thread.stop()


def make_service(
    driver: Driver,
    options: ServiceOptions = ServiceOptions(),  # noqa: B008 (immutable)
) -> tuple[Service, Starlette]:
    """Return a service that cannot change its checkpoint, and its application."""
    thread = EngineThread(driver, waits_for_commit=options.ack == "commit")
    admission = Admission(options.max_waiting)
    metrics = ServiceMetrics(thread, admission)
    service = Service(thread, admission, metrics, options.max_body_bytes)
    return service, make_app(service)


def start_server(service: Service, app: Starlette, listener: socket.socket) -> Callable[[], None]:
    """Serve from threads of this process on a bound socket.

    Returns:
      A function that ends the service and commits; it raises UserError as `run_service` does.
    """
    server = make_server(app)
    runner = threading.Thread(
        target=server.run, name=HTTP_THREAD, kwargs={"sockets": [listener]}, daemon=True
    )
    service.thread.start()
    listener.listen()
    runner.start()

    def stop() -> None:
        server.should_exit = True
        runner.join()
        service.thread.stop()

    return stop


def make_server(app: Starlette, stopped: Callable[[], bool] = lambda: False) -> uvicorn.Server:
    """Return the server of an application; it serves when `run` is called, unless `stopped()`."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=DRAIN_S,
        backlog=BACKLOG,
        lifespan="off",
        server_header=False,
    )
    return _Server(config, stopped)


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Bind a socket; clients wait until `run_service` accepts their connections.

    Raises:
      UserError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, error) from error
    with contextlib.closing(listener):
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except (OSError, OverflowError) as error:
            raise _cannot_listen(host, port, error) from error
        yield listener


def _cannot_listen(host: str, port: int, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"Cannot listen at --host={host} --port={port} ({reason}): choose another.")


class _Server(uvicorn.Server):
    """A server that says when it is ready, and heeds a signal from before its own handlers."""

    def __init__(self, config: uvicorn.Config, stopped: Callable[[], bool]):
        super().__init__(config)
        self._stopped = stopped

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.should_exit = self.should_exit or self._stopped()
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            print(f"serving at http://{host}:{port}", file=sys.stderr, flush=True)


def allow_many_connections() -> None:
    """Raise the limit of open files to the largest that the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
