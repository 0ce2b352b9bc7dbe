"""The routes of the page in the description of the service; see `openapi.py`."""

from __future__ import annotations

from rec2pm_jax.serve.openapi import (
    ID,
    LAST_EVENT,
    RECOMMENDATION,
    TIME,
    Schema,
    describe_get,
    describe_post,
)

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer"}
_LIMIT: Schema = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20},
}
_ERRORS = (422, 429, 503)


def describe_page_routes() -> dict[str, Schema]:
    """Return the description of each route of the page that answers with JSON, by its path."""
    user = {"name": "user", "in": "query", "required": True, "schema": _TEXT | {"minLength": 1}}
    return {
        "/model": {"get": describe_get("Show the model", _MODEL, (429, 503))},
        "/users": {
            "get": {
                "parameters": [_search("How ids begin."), _LIMIT],
                **describe_get("Find users", _list_of("users", _FOUND_USER), _ERRORS),
            }
        },
        "/items": {
            "get": {
                "parameters": [_search("Part of a title or an id, in any case."), _LIMIT],
                **describe_get("Find items", _list_of("items", _FOUND_ITEM), _ERRORS),
            }
        },
        "/history": {
            "get": {
                "parameters": [user, _LIMIT],
                **describe_get("Show the newest events of a user", _HISTORY, (421, *_ERRORS)),
            }
        },
        "/compare": {
            "post": describe_post(
                "Recommend from the memory, from recent events, and by other models",
                _COMPARED_REQUEST,
                _list_of("columns", _COLUMN),
                (400, 408, 413, 421, *_ERRORS),
            )
        },
    }


def _search(description: str) -> Schema:
    return {"name": "search", "in": "query", "description": description, "schema": _TEXT}


def _object(**fields: Schema) -> Schema:
    """Return the schema of an object with all of these fields."""
    return {"type": "object", "required": list(fields), "properties": fields}


def _list_of(name: str, row: Schema) -> Schema:
    return _object(**{name: {"type": "array", "items": row}})


_FOUND_USER = _object(user=_TEXT, events={"type": ["integer", "null"]})
_FOUND_ITEM = _object(item=_TEXT, title=_TEXT)
_MODEL = _object(
    method=_TEXT,
    dataset={"type": ["string", "null"]},
    items=_COUNT,
    users={"type": ["integer", "null"], "description": "Of the dataset, if users start with it."},
    segment=_COUNT | {"description": "Events of one memory update."},
    recent=_COUNT | {"description": "Newest events that no update takes."},
    read_length=_COUNT | {"description": "Events beside the memory that a read takes at most."},
    stores_memory={"type": "boolean"},
    uses_times={"type": "boolean", "description": "Whether events need a time."},
    event_types={"type": "array", "items": _TEXT},
)
_HISTORY = _object(
    user=_TEXT,
    events=_COUNT,
    updates=_COUNT,
    pending=_COUNT | {"description": "Events that no update has used."},
    last_time={"type": ["integer", "null"]},
    last_events={"type": "array", "items": LAST_EVENT, "description": "Newest first."},
)
_COMPARED_REQUEST: Schema = {
    "type": "object",
    "required": ["user"],
    "properties": {
        "user": ID,
        "recommend": {"type": "integer", "minimum": 1, "default": 10},
        "time": TIME,
    },
}
_COLUMN: Schema = {
    "type": "object",
    "required": ["name", "items"],
    "properties": {
        "name": _TEXT,
        "items": {"type": "array", "items": RECOMMENDATION},
        "note": _TEXT | {"description": "What a person should know about the column."},
    },
}
