"""The page at `/` and the requests that it makes beside those of the service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve import views
from rec2pm_jax.serve.bodies import check_owned, read_json
from rec2pm_jax.serve.known_events import KnownEvents, KnownHistory, begins_with_dataset
from rec2pm_jax.serve.other_runs import OtherRun, load_other_runs
from rec2pm_jax.serve.service import Service
from rec2pm_jax.stream.driver import Driver
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import (
    MALFORMED,
    RawId,
    RawTime,
    RejectedInput,
    parse_count,
    parse_id,
)
from rec2pm_jax.stream.users.user_state import UserState

FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
MAX_LIST = 1_000  # users, items or events that one answer lists
# The page loads nothing from elsewhere, and a title in the data cannot become a script.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_DIRECTORY = Path(__file__).parent / "page"


class PageViews:
    """What the page asks for, as functions of an engine; they belong into the engine's thread.

    Attributes:
      other_runs: compared beside the served model.
    """

    def __init__(self, other_runs: Sequence[OtherRun] = ()):
        """Start; nothing is known of any user yet."""
        self.other_runs = list(other_runs)
        self._known = KnownEvents()

    def show_history(self, engine: Engine, user: RawId, limit: int) -> dict[str, Any]:
        """Return the counts of a user and at most `limit` events, see `views.describe_user`.

        Raises:
          RejectedInput: the id is malformed, or another worker serves the user.
        """
        name, state, history = self._look_up(engine, user)
        return views.describe_user(engine, name, state, history, limit)

    def compare(
        self, engine: Engine, user: RawId, k: int, time: RawTime = None
    ) -> dict[str, list[views.Column]]:
        """Return the `columns` of `views.compare_reads`, and one for each other run.

        A run that cannot answer gives an empty column with a note. A user without events has one
        column.

        Args:
          engine: that holds the user.
          user: raw id.
          k, time: as in `Recommender.recommend`.

        Raises:
          RejectedInput, UserError: as `Recommender.recommend`, and as `show_history`.
        """
        name, state, history = self._look_up(engine, user)
        columns = views.compare_reads(engine.recommender, state, k, time)
        for run in self.other_runs if state.events else ():
            try:
                columns.append(run.read(name, history, k, time))
            except UserError as error:
                columns.append({"name": run.name, "items": [], "note": str(error)})
        return {"columns": columns}

    def _look_up(self, engine: Engine, user: RawId) -> tuple[str, UserState, KnownHistory]:
        name = parse_id(user, "user", engine.recommender.catalogue.rules)
        check_owned(name, engine.options.worker)
        return name, *self._known.look_up(engine, name)


def open_page(engine: Engine, workdirs: Sequence[str] = ()) -> list[Route]:
    """Return the routes of the page, with everything compiled that it needs.

    Args:
      engine: that is served; not yet by a thread.
      workdirs: of other runs to compare.

    Raises:
      UserError: see `load_other_runs`.
    """
    runs = load_other_runs(workdirs, engine.recommender)
    views.warm_up(engine.recommender, side_by_side=True)
    for run in runs:
        views.warm_up(run.recommender, side_by_side=False)
    return page_routes(PageViews(runs))


def page_routes(page_views: PageViews) -> list[Route]:
    """Return the routes of the page, for an application of `make_app`."""

    async def get_history(http: HttpRequest) -> Response:
        user = _parameter(http.query_params, "user")
        limit = _read_limit(http.query_params)
        return await _answer(http, lambda e: page_views.show_history(e, user, limit))

    async def post_compare(http: HttpRequest) -> Response:
        service: Service = http.app.state.service
        with service.admission.admit() as admitted:
            fields = await read_json(http, admitted, service.max_body_bytes)
            if not isinstance(fields, dict):
                raise RejectedInput(MALFORMED, "not a JSON object")
            user, time = _parameter(fields, "user"), fields.get("time")
            k = parse_count(fields.get("recommend", 10), "recommend")
            columns = await service.thread.call(
                lambda driver: page_views.compare(driver.engine, user, k, time)
            )
        return JSONResponse(columns)

    return [
        *(Route(path, _file_endpoint(name)) for path, name in FILES.items()),
        Route("/model", get_model),
        Route("/users", get_users),
        Route("/items", get_items),
        Route("/history", get_history),
        Route("/compare", post_compare, methods=["POST"]),
    ]


async def get_model(http: HttpRequest) -> Response:
    """Return what the page says of the model."""
    return await _answer(http, views.describe_model)


async def get_users(http: HttpRequest) -> Response:
    """Return users whose id begins with `search`."""
    search, limit = http.query_params.get("search", ""), _read_limit(http.query_params)
    service: Service = http.app.state.service

    def find_stored(driver: Driver) -> list[dict[str, Any]] | None:
        if begins_with_dataset(driver.engine):
            return None
        return views.find_stored_users(driver.engine.store, search, limit, service.worker)

    with service.admission.admit() as admitted:
        admitted.take_place()
        users = await service.thread.call(find_stored)
        dataset = service.recommender.dataset
        if users is None and dataset is not None:
            users = await run_in_threadpool(
                views.find_users, dataset, search, limit, service.worker
            )
    return JSONResponse({"users": users or []})


async def get_items(http: HttpRequest) -> Response:
    """Return items whose title or id contains `search`."""
    search, limit = http.query_params.get("search", ""), _read_limit(http.query_params)
    service: Service = http.app.state.service
    with service.admission.admit() as admitted:
        admitted.take_place()
        items = await run_in_threadpool(views.find_items, service.recommender, search, limit)
    return JSONResponse({"items": items})


async def _answer(http: HttpRequest, function: Callable[[Engine], Any]) -> Response:
    """Answer with what a function of the engine returns, run in the engine's thread."""
    service: Service = http.app.state.service
    with service.admission.admit() as admitted:
        admitted.take_place()
        return JSONResponse(await service.thread.call(lambda driver: function(driver.engine)))


def _file_endpoint(name: str) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def get_file(http: HttpRequest) -> Response:
        return FileResponse(_DIRECTORY / name, headers=HEADERS)

    return get_file


def _parameter(given: Mapping[str, Any], field: str) -> Any:
    if field not in given:
        raise RejectedInput(MALFORMED, f'"{field}" is missing')
    return given[field]


def _read_limit(given: Mapping[str, str]) -> int:
    """Return `limit`, 1 to `MAX_LIST`.

    Raises:
      RejectedInput: it is none.
    """
    text = given.get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= MAX_LIST):
        raise RejectedInput(MALFORMED, f'"limit" must be 1 to {MAX_LIST}, got {text[:20]!r}')
    return int(text)
