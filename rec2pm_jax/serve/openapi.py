"""The description of the service for machines: OpenAPI 3.1, at GET /openapi.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rec2pm_jax

Schema = dict[str, Any]

ID: Schema = {
    "description": 'An id: text, or a whole number. 7, 7.0 and "7" are the same.',
    "oneOf": [{"type": "string", "minLength": 1, "maxLength": 120}, {"type": "integer"}],
}
TIME: Schema = {
    "description": "Seconds since 1970, or ISO 8601 text.",
    "oneOf": [
        {"type": "integer", "minimum": 0, "maximum": 4_000_000_000},
        {"type": "string", "format": "date-time"},
    ],
}
_IDS: Schema = {"type": "array", "items": ID}
_GROUP: Schema = {
    "description": "A list of items, or items and categories.",
    "oneOf": [
        _IDS,
        {
            "type": "object",
            "properties": {
                "items": _IDS,
                "categories": {"type": "array", "items": {"type": "string"}},
            },
            "additionalProperties": False,
        },
    ],
}
_EVENT: Schema = {
    "type": "object",
    "required": ["user", "item"],
    "properties": {
        "user": ID,
        "item": ID,
        "time": TIME,
        "type": {"type": "string", "description": "Name of the event type."},
        "seq": {
            "type": "integer",
            "minimum": 0,
            "maximum": 2**63 - 1,
            "description": "Number of the event among those of its user, increasing. A repeated event "
            "is recognised by it, and counts once.",
        },
    },
}
_REJECTED: Schema = {
    "type": "object",
    "required": ["index", "reason", "message"],
    "properties": {
        "index": {"type": "integer", "description": "Place of the event in the body, from 0."},
        "reason": {"type": "string"},
        "message": {"type": "string"},
    },
}
_APPLIED: Schema = {
    "type": "object",
    "required": ["accepted", "rejected", "committed"],
    "properties": {
        "accepted": {"type": "integer", "description": "How many events were applied."},
        "rejected": {"type": "array", "items": _REJECTED},
        "committed": {"type": "boolean", "description": "Whether they are in the store."},
    },
}
RECOMMENDATION: Schema = {
    "type": "object",
    "required": ["item", "title", "score"],
    "properties": {
        "item": {"type": "string"},
        "title": {"type": "string"},
        "score": {"type": ["number", "null"]},
    },
}
_REQUEST: Schema = {
    "type": "object",
    "required": ["user"],
    "properties": {
        "user": ID,
        "recommend": {"type": "integer", "minimum": 1, "default": 10},
        "time": TIME,
        "exclude": _IDS,
        "exclude_seen": {
            "oneOf": [
                {"type": "boolean"},
                {
                    "type": "object",
                    "properties": {
                        "types": {"type": "array", "items": {"type": "string"}},
                        "days": {"type": "number", "exclusiveMinimum": 0},
                    },
                    "additionalProperties": False,
                },
            ]
        },
        "candidates": {"type": "array", "items": ID, "minItems": 1},
        "allow": _GROUP,
        "deny": _GROUP,
    },
}
_ANSWER: Schema = {
    "type": "object",
    "required": ["user", "items", "events", "updates"],
    "properties": {
        "user": {"type": "string"},
        "items": {"type": "array", "items": RECOMMENDATION},
        "events": {"type": "integer"},
        "updates": {"type": "integer"},
        "popular": {"type": "boolean", "description": "The user has no events."},
        "wanted": {"type": "integer", "description": "Given if filters leave fewer items."},
    },
}
LAST_EVENT: Schema = {
    "type": "object",
    "properties": {
        "item": {"type": ["string", "null"]},
        "title": {"type": ["string", "null"]},
        "time": {"type": ["integer", "null"]},
        "type": {"type": ["string", "null"]},
    },
}
_USER: Schema = {
    "type": "object",
    "required": ["user", "events", "updates", "pending", "last_events", "memory_expects"],
    "properties": {
        "user": {"type": "string"},
        "events": {"type": "integer", "description": "Events of the user so far."},
        "updates": {"type": "integer", "description": "Memory updates from them."},
        "pending": {"type": "integer", "description": "Events that no update has used."},
        "last_events": {"type": "array", "items": LAST_EVENT},
        "memory_expects": {"type": "array", "items": RECOMMENDATION},
    },
}
_SWAPPED: Schema = {
    "type": "object",
    "required": ["model", "store", "replayed"],
    "properties": {
        "model": {"type": "string"},
        "store": {"type": "string"},
        "replayed": {"type": "integer", "description": "Events read from the journal."},
    },
}
_STATUS: Schema = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string"}},
}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "One sentence."}},
}
_TEXTS = {
    400: "The body is not JSON.",
    404: "The user has no events.",
    408: "The body takes too long to arrive.",
    409: "The change was not made; the old model stays.",
    413: "The body is too large.",
    421: "Another worker serves the user.",
    422: "A field is missing, malformed or unknown.",
    429: "Too much waits: try again after `Retry-After` seconds.",
    503: "The service ends, or its store does not answer: try again later.",
}


def describe_api(max_body_bytes: int, more: Mapping[str, Schema]) -> dict[str, Any]:
    """Return the description.

    Args:
      max_body_bytes: largest body.
      more: descriptions of further routes, by their paths.
    """
    events: Schema = {
        "oneOf": [
            _EVENT,
            {
                "type": "object",
                "required": ["events"],
                "properties": {"events": {"type": "array", "items": _EVENT}},
            },
        ]
    }
    user = {"name": "user", "in": "path", "required": True}
    user["schema"] = {"type": "string", "minLength": 1, "maxLength": 120}
    posts = (400, 408, 413, 421, 422, 429, 503)
    swap = describe_post("Change to a new checkpoint", _SWAP, _SWAPPED, (*posts, 409))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rec2pm_jax",
            "version": rec2pm_jax.__version__,
            "description": f"Events in, recommendations out. Largest body: {max_body_bytes} bytes.",
        },
        "paths": {
            "/events": {
                "post": describe_post("Apply one event or several", events, _APPLIED, posts)
            },
            "/recommend": {"post": describe_post("Recommend items", _REQUEST, _ANSWER, posts)},
            "/users/{user}": {
                "get": {
                    "parameters": [user],
                    **describe_get("Show a user", _USER, (404, 421, 422, 429, 503)),
                }
            },
            "/swap": {"post": swap},
            "/health": {"get": describe_get("Whether the service works", _STATUS, (503,))},
            "/metrics": {"get": describe_get("Metrics for Prometheus", None, ())},
            "/openapi.json": {"get": describe_get("This description", {"type": "object"}, ())},
            **more,
        },
    }


_SWAP: Schema = {
    "type": "object",
    "properties": {
        "store": {"type": "string", "description": "Address of the rebuilt store; default --store."}
    },
}


def describe_post(summary: str, body: Schema, answer: Schema, errors: tuple[int, ...]) -> Schema:
    """Return the description of a POST; arguments as for `describe_get`, and the schema of the body."""
    required = body is not _SWAP
    content = {"application/json": {"schema": body}}
    return {
        **describe_get(summary, answer, errors),
        "requestBody": {"required": required, "content": content},
    }


def describe_get(summary: str, answer: Schema | None, errors: tuple[int, ...]) -> Schema:
    """Return the description of a GET.

    Args:
      answer: schema of its JSON; None: it is text.
      errors: statuses of its errors, without 500.
    """
    text = {"text/plain": {"schema": {"type": "string"}}}
    content = text if answer is None else {"application/json": {"schema": answer}}
    responses = {"200": {"description": summary, "content": content}}
    for status in errors:
        # A single event that is rejected is described as in a list, beside the error.
        error = {"application/json": {"schema": _STATUS if answer is _STATUS else _ERROR}}
        responses[str(status)] = {"description": _TEXTS[status], "content": error}
    return {"summary": summary, "responses": responses}
