"""The routes of the service, on Starlette."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve.admission import RETRY_AFTER_S, Overloaded
from rec2pm_jax.serve.bodies import (
    OTHER_WORKER,
    check_owned,
    parse_events,
    parse_request,
    read_json,
)
from rec2pm_jax.serve.metrics import METRICS_TYPE, TimeRequests
from rec2pm_jax.serve.openapi import describe_api
from rec2pm_jax.serve.openapi_page import describe_page_routes
from rec2pm_jax.serve.service import Service
from rec2pm_jax.serve.swap import SwapRefused
from rec2pm_jax.serve.users import describe_user
from rec2pm_jax.serve.work import Stopped
from rec2pm_jax.stream.lines.events import DUPLICATE, RejectedInput, parse_id
from rec2pm_jax.stream.lines.output import format_answer

STATUS_OTHER_WORKER = 421  # Misdirected Request


def make_app(service: Service, more: Sequence[BaseRoute] = ()) -> Starlette:
    """Return the ASGI application.

    Args:
      service: routes find it as `service` in the state of the application.
      more: further routes, such as those of the page.
    """
    routes = [
        Route("/events", post_events, methods=["POST"]),
        Route("/recommend", post_recommend, methods=["POST"]),
        Route("/users/{user:path}", get_user, methods=["GET"]),
        Route("/swap", post_swap, methods=["POST"]),
        Route("/health", get_health, methods=["GET"]),
        Route("/metrics", get_metrics, methods=["GET"]),
        Route("/openapi.json", get_openapi, methods=["GET"]),
    ]
    app = Starlette(
        routes=[*routes, *more],
        exception_handlers=HANDLERS,
        middleware=[Middleware(TimeRequests, metrics=service.metrics)],
    )
    app.state.service = service
    return app


async def post_events(http: HttpRequest) -> Response:
    """Apply one event, or the list `events`."""
    service: Service = http.app.state.service
    with service.admission.admit() as admitted:
        body = parse_events(
            await read_json(http, admitted, service.max_body_bytes), service.rules, service.worker
        )
        applied = await service.apply(body)
    rejected = [
        {"index": place, "reason": error.reason, "message": str(error)}
        for place, error in applied.rejected
    ]
    answer = {
        "accepted": applied.accepted,
        "rejected": rejected,
        "committed": applied.committed,
    }
    if body.is_list or not rejected or rejected[0]["reason"] == DUPLICATE:
        return JSONResponse(answer)
    error = applied.rejected[0][1]
    return JSONResponse({"error": str(error), **answer}, _status(error))


async def post_recommend(http: HttpRequest) -> Response:
    """Answer a request for recommendations."""
    service: Service = http.app.state.service
    with service.admission.admit() as admitted:
        body = await read_json(http, admitted, service.max_body_bytes)
        request = parse_request(body, service.rules)
        check_owned(request.user, service.worker)
        answer = await service.thread.answer(request)
    return Response(format_answer(answer), media_type="application/json")


async def get_user(http: HttpRequest) -> Response:
    """Return what is kept of a user."""
    service: Service = http.app.state.service
    user = parse_id(http.path_params["user"], "user", service.rules)
    check_owned(user, service.worker)
    with service.admission.admit() as admitted:
        admitted.take_place()
        found = await service.thread.call(lambda driver: describe_user(driver.engine, user))
    if found is None:
        raise HTTPException(404, f"User {user[:80]!r} has no events.")
    return JSONResponse(found)


async def post_swap(http: HttpRequest) -> Response:
    """Change to the newest checkpoint; see `swap.py`."""
    service: Service = http.app.state.service
    with service.admission.admit() as admitted:
        body = await read_json(http, admitted, service.max_body_bytes, empty={})
        store = body.get("store", "") if isinstance(body, dict) else None
        if not isinstance(store, str):
            raise HTTPException(422, 'The body must be empty, or {"store": ADDRESS}.')
    if service.swapper is None:
        raise SwapRefused("This service cannot change its checkpoint.")
    return JSONResponse(await service.swapper.swap(store))


async def get_metrics(http: HttpRequest) -> Response:
    """Return metrics in the format of Prometheus."""
    service: Service = http.app.state.service
    return Response(service.metrics.render(), media_type=METRICS_TYPE)


async def get_openapi(http: HttpRequest) -> Response:
    """Return the description of all routes."""
    service: Service = http.app.state.service
    served = {getattr(route, "path", "") for route in http.app.routes}
    page = {path: text for path, text in describe_page_routes().items() if path in served}
    return JSONResponse(describe_api(service.max_body_bytes, page))


async def get_health(http: HttpRequest) -> Response:
    """Return whether the service works."""
    service: Service = http.app.state.service
    works, text = service.health()
    return JSONResponse({"status": text}, 200 if works else 503)


# --- errors: one clear sentence each ---


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)


def _status(error: RejectedInput) -> int:
    return STATUS_OTHER_WORKER if error.reason == OTHER_WORKER else 422


async def _on_http(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text, path = error.detail, http.url.path[:80]
    if error.status_code == 404 and text == "Not Found":
        text = f"There is no {path}; GET /openapi.json lists what there is."
    if error.status_code == 405:
        text = f"{path} does not take {http.method}; GET /openapi.json says what it takes."
    return _error(error.status_code, text, dict(error.headers or {}))


async def _on_rejected(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RejectedInput)
    return _error(_status(error), str(error))


async def _on_overloaded(http: HttpRequest, error: Exception) -> Response:
    return _error(429, str(error), {"Retry-After": str(RETRY_AFTER_S)})


async def _on_stopped(http: HttpRequest, error: Exception) -> Response:
    return _error(503, str(error), {"Retry-After": str(RETRY_AFTER_S)})


async def _on_user_error(http: HttpRequest, error: Exception) -> Response:
    return _error(503, str(error))  # the store does not answer, or the model is broken


async def _on_refused(http: HttpRequest, error: Exception) -> Response:
    return _error(409, str(error))


async def _on_disconnect(http: HttpRequest, error: Exception) -> Response:
    return _error(400, "The client closed the connection within the body.")  # nobody reads it


async def _on_other(http: HttpRequest, error: Exception) -> Response:
    return _error(500, "The service failed; its log says why.")


HANDLERS: Any = {
    HTTPException: _on_http,
    RejectedInput: _on_rejected,
    Overloaded: _on_overloaded,
    Stopped: _on_stopped,
    UserError: _on_user_error,
    SwapRefused: _on_refused,
    ClientDisconnect: _on_disconnect,
    Exception: _on_other,
}
