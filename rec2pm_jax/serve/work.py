"""What the event loop hands to the engine's thread, and what it gets back."""

from __future__ import annotations

import asyncio
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


class OtherWork(NamedTuple):
    """Anything else, done one after the other.

    Attributes:
      input: a request, or a function of the driver.
      future: of the event loop, gets the result.
    """

    input: Request | Callable[[Driver], Any]
    future: asyncio.Future[Any]


Work = EventsWork | OtherWork


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
    except RuntimeError:  # the loop is closed: nobody waits any more
        pass
