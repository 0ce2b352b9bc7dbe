"""Bodies of requests: read within the limits, and parsed by the rules of `launch.stream`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.serve.admission import Admitted
from rec2pm_jax.stream.lines.events import MALFORMED, Event, RejectedInput
from rec2pm_jax.stream.lines.requests import Request, parse_fields
from rec2pm_jax.stream.options import Worker
from rec2pm_jax.stream.outcomes import Rejections

OTHER_WORKER = "other worker"
BODY_S = 60  # in which a body has to arrive: else the bytes of a client that vanished would stay


class EventsBody(NamedTuple):
    """The events of one body.

    Attributes:
      events: those that are well-formed and this worker's.
      places: of each, its place in the body.
      rejected: the others, by their place in the body.
      is_list: whether the body had a list of events, or was one event.
    """

    events: list[Event]
    places: list[int]
    rejected: Rejections
    is_list: bool


async def read_json(
    http: HttpRequest, admitted: Admitted, max_bytes: int, empty: Any = None
) -> Any:
    """Read the body of a request as JSON; it then has a place.

    Args:
      max_bytes: of the body.
      empty: stands for a body of no bytes, if it may have none.

    Raises:
      HTTPException: 413 if it is too large, 408 if it takes too long, 400 if it is not JSON.
      ClientDisconnect: the client went away before the body was complete.
      Overloaded: see `Admitted`.
    """
    too_large = HTTPException(
        413, f"The body is larger than {max_bytes} bytes: send fewer events at once."
    )
    announced = http.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise too_large
    parts = []
    try:
        async with asyncio.timeout(BODY_S):
            async for part in http.stream():
                admitted.add(len(part))
                if admitted.num_bytes > max_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError as error:
        text = f"The body has not arrived within {BODY_S} s: send it again."
        raise HTTPException(408, text, {"Connection": "close"}) from error
    admitted.take_place()
    if not admitted.num_bytes and empty is not None:
        return empty
    try:
        return json.loads(b"".join(parts).decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise HTTPException(400, f"The body is not JSON ({error}).") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def parse_events(body: Any, rules: ValueRules, worker: Worker) -> EventsBody:
    """Parse one event, or an object with a list of `events`.

    Args:
      body: JSON.
      rules: as for `requests.parse_line`.
      worker: whose users are accepted.

    Raises:
      HTTPException: 422, the body is neither.
    """
    is_list = isinstance(body, Mapping) and "events" in body
    given = body["events"] if is_list else [body]
    if not isinstance(given, list):
        raise HTTPException(422, f'"events" must be a list of events, got {str(given)[:80]!r}.')
    found = EventsBody([], [], [], is_list)
    for place, fields in enumerate(given):
        try:
            event = parse_fields(fields, rules)
            if not isinstance(event, Event):
                raise RejectedInput(MALFORMED, '"item" is missing; POST /recommend takes requests')
            check_owned(event.user, worker)
        except RejectedInput as error:
            found.rejected.append((place, error))
        else:
            found.events.append(event)
            found.places.append(place)
    return found


def parse_request(body: Any, rules: ValueRules) -> Request:
    """Parse a request for recommendations; `recommend` is 10 unless given.

    Raises:
      RejectedInput: it is malformed.
    """
    if isinstance(body, Mapping):
        body = {"recommend": 10, **body}
    request = parse_fields(body, rules)
    if not isinstance(request, Request):
        raise RejectedInput(MALFORMED, '"item" is for POST /events')
    return request


def check_owned(user: str, worker: Worker) -> None:
    """Raise RejectedInput if another of several workers serves a user."""
    if worker.count > 1 and not worker.owns(user):
        owner = next(i for i in range(worker.count) if Worker(i, worker.count).owns(user))
        raise RejectedInput(
            OTHER_WORKER, f"user {user!r} is served by worker {owner}/{worker.count}"
        )
