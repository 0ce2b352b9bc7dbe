"""The page at `/` and the requests that it makes beside those of the service."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve import views
from rec2pm_jax.serve.known_events import KnownEvents
from rec2pm_jax.serve.other_runs import OtherRun
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import MALFORMED, RawTime, RejectedInput, parse_count, parse_id

FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
MAX_BODY = 65_536  # bytes of a request of the page
MAX_LIST = 1_000  # users, items or events that one answer lists
# The page loads nothing from elsewhere, and a title in the data cannot become a script.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_DIRECTORY = Path(__file__).parent / "page"

Result = TypeVar("Result")
# Runs a function of an engine in the thread that owns the engine, and returns its result.
Call = Callable[[Callable[[Engine], Result]], Awaitable[Result]]


class PageViews:
    """What the page asks for, as functions of an engine; they belong into the engine's thread.

    Attributes:
      other_runs: compared beside the served model.
    """

    def __init__(self, other_runs: Sequence[OtherRun] = ()):
        """Start; nothing is known of any user yet."""
        self.other_runs = list(other_runs)
        self._known = KnownEvents()

    def describe_user(
        self, engine: Engine, name: str, limit: int, k: int, time: RawTime = None
    ) -> dict[str, Any]:
        """Return counts, newest events and what the memory expects, see `views.describe_user`.

        Args:
          engine: that holds the user.
          name: raw id.
          limit: events at most.
          k: items that the memory expects, at most; 0 for none.
          time: of the request.
        """
        name = parse_id(name, "user", engine.recommender.catalogue.rules)
        user, history = self._known.look_up(engine, name)
        described = views.describe_user(engine, name, user, history, limit)
        expected = views.memory_expects(engine.recommender, user, k, time) if k else []
        return described | {"memory_expects": expected}

    def compare(
        self, engine: Engine, name: str, k: int, time: RawTime = None
    ) -> dict[str, list[views.Column]]:
        """Return the columns of `/compare`; arguments as in `describe_user`, k >= 1.

        A run that cannot answer gives an empty column with a note.
        """
        name = parse_id(name, "user", engine.recommender.catalogue.rules)
        user, history = self._known.look_up(engine, name)
        columns = views.compare_reads(engine.recommender, user, k, time)
        for run in self.other_runs:
            try:
                columns.append(run.read(name, history, k, time))
            except UserError as error:
                columns.append({"name": run.name, "items": [], "note": str(error)})
        return {"columns": columns}


def page_routes(page_views: PageViews, call: Call) -> list[Route]:
    """Return the routes of the page.

    Args:
      page_views: answers the requests.
      call: runs a function in the engine's thread.
    """

    async def get_users(request: Request) -> Response:
        search, limit = _search_of(request)
        return JSONResponse(
            {"users": await call(lambda engine: views.find_users(engine, search, limit))}
        )

    async def get_items(request: Request) -> Response:
        search, limit = _search_of(request)
        return JSONResponse(
            {"items": await call(lambda e: views.find_items(e.recommender, search, limit))}
        )

    async def get_model(request: Request) -> Response:
        return JSONResponse(await call(views.describe_model))

    async def post_compare(request: Request) -> Response:
        fields = await _read_fields(request)
        k = parse_count(fields.get("recommend", 10), "recommend")
        if "user" not in fields:
            raise RejectedInput(MALFORMED, '"user" is missing')
        name, time = fields["user"], fields.get("time")
        return JSONResponse(await call(lambda engine: page_views.compare(engine, name, k, time)))

    return [
        *(Route(path, _file_endpoint(name)) for path, name in FILES.items()),
        Route("/users", _explain_errors(get_users)),
        Route("/items", _explain_errors(get_items)),
        Route("/model", _explain_errors(get_model)),
        Route("/compare", _explain_errors(post_compare), methods=["POST"]),
    ]


Endpoint = Callable[[Request], Awaitable[Response]]


def _file_endpoint(name: str) -> Endpoint:
    async def get_file(request: Request) -> Response:
        return FileResponse(_DIRECTORY / name, headers=HEADERS)

    return get_file


def _explain_errors(endpoint: Endpoint) -> Endpoint:
    """Answer what cannot be used with 400 and one sentence."""

    async def explained(request: Request) -> Response:
        try:
            return await endpoint(request)
        except UserError as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    return explained


def _search_of(request: Request) -> tuple[str, int]:
    return request.query_params.get("search", ""), read_limit(request.query_params, "limit", 20)


def read_limit(parameters: Mapping[str, str], field: str, default: int) -> int:
    """Return a number of a query, 0 to `MAX_LIST`.

    Raises:
      RejectedInput: it is none.
    """
    text = parameters.get(field, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) <= MAX_LIST):
        raise RejectedInput(MALFORMED, f'"{field}" must be 0 to {MAX_LIST}, got {text[:20]!r}')
    return int(text)


async def _read_fields(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise RejectedInput(MALFORMED, f"the body is longer than {MAX_BODY} bytes")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RejectedInput(MALFORMED, f"the body is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise RejectedInput(MALFORMED, "the body is not a JSON object")
    return fields
