"""Events and requests as JSON lines, checked field by field.

One object per line, in time order:

    {"user": U, "item": I, "time": seconds since 1970 (optional), "type": T (optional),
     "seq": N (optional)}
    {"user": U, "recommend": k, "exclude": [I, ...] (optional), "time": ... (optional)}

`seq` numbers the events of one user upwards, so that a repeated delivery is recognised. Ids are strings
or integers; 123 and "123" are the same id. Other fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from rec2pm_jax.errors import UserError

MALFORMED = "malformed"
UNKNOWN_ITEM = "unknown item"
UNKNOWN_TYPE = "unknown event type"
OUT_OF_ORDER = "out of order"
FAR_FUTURE = "far future"
DUPLICATE = "duplicate"

_TIME_LIMIT = 2**62
# `json.loads` guesses the encoding of bytes first, which takes as long as parsing them.
_decode_json = json.JSONDecoder().raw_decode


class RejectedInput(UserError):
    """An event or request that cannot be used. A stream counts and skips it.

    Attributes:
      reason: one of the constants of this module, such as `UNKNOWN_ITEM`.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Event(NamedTuple):
    """One event of one user.

    Attributes:
      user, item: raw ids.
      time: whole seconds since 1970, or None.
      type: name of the event type, or None.
      seq: number of the event among those of its user, >= 0, or None.
    """

    user: str
    item: str
    time: int | None = None
    type: str | None = None
    seq: int | None = None


class Request(NamedTuple):
    """A request for recommendations.

    Attributes:
      user: raw id.
      k: how many items are wanted.
      exclude: raw ids of items that must not be recommended.
      time: of the request, whole seconds since 1970, or None.
    """

    user: str
    k: int
    exclude: tuple[str, ...] = ()
    time: int | None = None


def parse_line(line: bytes) -> Event | Request:
    """Parse one line of a stream.

    Args:
      line: UTF-8, with or without its line break.

    Returns:
      An `Event` if the line has an item, a `Request` if it has `recommend`.

    Raises:
      RejectedInput: the line is malformed; the message names the field.

    Example:
      >>> parse_line(b'{"user": 7, "item": "BANANAS", "time": 1483271606}')
      Event(user='7', item='BANANAS', time=1483271606, type=None, seq=None)
      >>> parse_line(b'{"user": "7", "recommend": 5}')
      Request(user='7', k=5, exclude=(), time=None)
    """
    try:
        text = line.decode().strip()
        fields, end = _decode_json(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise RejectedInput(MALFORMED, f"not JSON ({error})") from error
    if end != len(text):
        raise RejectedInput(MALFORMED, f"not JSON (more follows after character {end})")
    if not isinstance(fields, dict):
        raise RejectedInput(MALFORMED, "not a JSON object")
    if ("item" in fields) == ("recommend" in fields):
        raise RejectedInput(MALFORMED, 'needs either "item" or "recommend"')
    if "user" not in fields:
        raise RejectedInput(MALFORMED, '"user" is missing')
    user = _parse_id(fields["user"], "user")
    if "item" in fields:
        return parse_event(fields, user)
    return _parse_request(fields, user)


def parse_event(fields: Mapping[str, Any], user: str = "") -> Event:
    """Check the fields of an event.

    Args:
      fields: `item`, and optionally `time`, `type` and `seq`.
      user: raw id of its user; "" if it is known from elsewhere.

    Raises:
      RejectedInput: a field is missing or malformed.
    """
    if "item" not in fields:
        raise RejectedInput(MALFORMED, '"item" is missing')
    kind = fields.get("type")
    if kind is not None and not isinstance(kind, str):
        raise RejectedInput(MALFORMED, f'"type" must be a string, got {kind!r}')
    seq = fields.get("seq")
    if seq is not None and (type(seq) is not int or not 0 <= seq < 2**63):
        raise RejectedInput(MALFORMED, f'"seq" must be a whole number below 2^63, got {seq!r}')
    item = _parse_id(fields["item"], "item")
    return Event(user, item, _parse_time(fields.get("time")), kind, seq)


def _parse_request(fields: Mapping[str, Any], user: str) -> Request:
    k, exclude = fields["recommend"], fields.get("exclude")
    if isinstance(k, bool) or not isinstance(k, int):
        raise RejectedInput(MALFORMED, f'"recommend" must be a whole number, got {k!r}')
    exclude = [] if exclude is None else exclude
    if not isinstance(exclude, list):
        raise RejectedInput(MALFORMED, f'"exclude" must be a list of items, got {exclude!r}')
    items = tuple(_parse_id(item, "exclude") for item in exclude)
    return Request(user, k, items, _parse_time(fields.get("time")))


def _parse_id(value: Any, field: str) -> str:
    if type(value) is str and value and value.isascii():  # the usual case, checked first
        return value
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RejectedInput(MALFORMED, f'"{field}" must hold a string or integer, got {value!r}')
    text = str(value)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise RejectedInput(MALFORMED, f'"{field}" holds half a character, got {value!r}')
    return text


def _parse_time(value: Any) -> int | None:
    if value is None or (type(value) is int and 0 <= value < _TIME_LIMIT):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RejectedInput(MALFORMED, f'"time" must be whole seconds since 1970, got {value!r}')
    if abs(value) >= _TIME_LIMIT:
        raise RejectedInput(MALFORMED, f'"time" {value} is out of range')
    return value
