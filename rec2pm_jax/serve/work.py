"""What the event loop hands to the engine's thread, and what it gets back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.driver import Driver
from rec2pm_jax.stream.lines.events import Event
from rec2pm_jax.stream.lines.requests import Request
from rec2pm_jax.stream.outcomes import Rejections


class Applied(NamedTuple):
    """What became of the events of one body.

    Attributes:
      accepted: how many were applied.
      rejected: the others, by their place in the body.
      committed: whether all that was applied is in the store.
    """

    accepted: int
    rejected: Rejections
    committed: bool


class CommitFailed(UserError):
    """The store could not keep what was applied, so the thread has to end."""


class Stopped(Exception):
    """The engine's thread has ended, so the work was not done; the message says why."""


class EventsWork(NamedTuple):
    """Events of one body to be applied.

    Attributes:
      events: in order.
      future: of the event loop, gets an `Applied`.
    """

    events: list[Event]
    future: asyncio.Future[Any]


class RequestWork(NamedTuple):
    """A request for recommendations.

    Attributes:
      request: to be answered.
      future: of the event loop, gets an `Answer`.
    """

    request: Request
    future: asyncio.Future[Any]


class CallWork(NamedTuple):
    """Anything else.

    Attributes:
      function: to be called with the driver.
      future: of the event loop, gets what the function returns.
    """

    function: Callable[[Driver], Any]
    future: asyncio.Future[Any]


Work = EventsWork | RequestWork | CallWork


def send(future: asyncio.Future[Any], result: Any = None, error: Exception | None = None) -> None:
    """Hand a result to the event loop of its future."""

    def set_result() -> None:
        if future.done():  # the handler was cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    try:
        future.get_loop().call_soon_threadsafe(set_result)
    except RuntimeError:  # the loop is closed: no handler waits any more
        pass


class Acknowledgements:
    """Results that wait until the commit of their events is in the store.

    Snapshots get into the store in the order in which they are taken.
    """

    def __init__(self) -> None:
        self._uncommitted: list[tuple[Work, Any]] = []
        self._snapshots: deque[list[tuple[Work, Any]]] = deque()

    def add(self, work: Work, result: Any) -> None:
        """Keep the result of work whose events are applied."""
        self._uncommitted.append((work, result))

    def take_snapshot(self) -> None:
        """Note that a snapshot was taken of everything applied so far."""
        self._snapshots.append(self._uncommitted)
        self._uncommitted = []

    def send_oldest(self) -> None:
        """Send the results of the oldest snapshot, which is in the store now."""
        for work, result in self._snapshots.popleft():
            send(work.future, result)

    def send_all(self) -> None:
        """Send all results, as everything is in the store."""
        self.take_snapshot()
        while self._snapshots:
            self.send_oldest()

    def give_up(self) -> list[Work]:
        """Return all work that still waits, and forget it."""
        self.take_snapshot()
        waiting = [work for results in self._snapshots for work, _ in results]
        self._snapshots.clear()
        return waiting
