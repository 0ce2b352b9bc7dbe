"""Events and requests as the outside world writes them, checked field by field.

One JSON object per line, in time order:

    {"user": U, "item": I, "time": seconds since 1970 (optional), "type": T (optional),
     "seq": N (optional)}
    {"user": U, "recommend": k, "exclude": [I, ...] (optional), "time": ... (optional)}

`seq` numbers a user's events upwards, so that one delivered again is known as such. Ids are strings
or integers (123 and "123" are the same id); other fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from rec2pm_jax.errors import UserError

_decode = json.JSONDecoder().raw_decode

MALFORMED = "malformed"
UNKNOWN_ITEM = "unknown item"
UNKNOWN_TYPE = "unknown event type"
OUT_OF_ORDER = "out of order"
FAR_FUTURE = "far future"
DUPLICATE = "duplicate"


_LATEST = 2**62


class Refused(UserError):
    """An event or request that cannot be used. A stream counts it by `reason` and goes on."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Event(NamedTuple):
    """Attributes: raw ids, `time` in whole seconds since 1970, `type` by its name, `seq` >= 0."""

    user: str
    item: str
    time: int | None = None
    type: str | None = None
    seq: int | None = None


class Request(NamedTuple):
    """Attributes: `k` items for `user`, none of `exclude`, asked at `time` (seconds since 1970)."""

    user: str
    k: int
    exclude: tuple[str, ...] = ()
    time: int | None = None


def parse_line(line: bytes) -> Event | Request:
    """Parses one line of a stream.

    Raises:
      Refused: malformed; the message says what is wrong with it.
    """
    try:
        text = line.decode().strip()
        fields, end = _decode(text)  # `json.loads` guesses the encoding, which takes as long again
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise Refused(MALFORMED, f"not JSON ({error})") from error
    if end != len(text):
        raise Refused(MALFORMED, f"not JSON (more follows after character {end})")
    if not isinstance(fields, dict):
        raise Refused(MALFORMED, "not a JSON object")
    if ("item" in fields) == ("recommend" in fields):
        raise Refused(MALFORMED, 'needs either "item" or "recommend"')
    if "user" not in fields:
        raise Refused(MALFORMED, '"user" is missing')
    user = _raw_id(fields["user"], "user")
    if "item" in fields:
        return make_event(fields, user)
    return _make_request(fields, user)


def make_event(fields: Mapping, user: str = "") -> Event:
    """Checks `item`, `time` and `type` of a mapping.

    Raises:
      Refused: malformed.
    """
    if "item" not in fields:
        raise Refused(MALFORMED, '"item" is missing')
    kind = fields.get("type")
    if kind is not None and not isinstance(kind, str):
        raise Refused(MALFORMED, f'"type" must be a string, got {kind!r}')
    seq = fields.get("seq")
    if seq is not None and (type(seq) is not int or not 0 <= seq < 2**63):
        raise Refused(MALFORMED, f'"seq" must be a whole number below 2^63, got {seq!r}')
    return Event(user, _raw_id(fields["item"], "item"), _time(fields.get("time")), kind, seq)


def _make_request(fields: Mapping, user: str) -> Request:
    k, exclude = fields["recommend"], fields.get("exclude")
    if isinstance(k, bool) or not isinstance(k, int):
        raise Refused(MALFORMED, f'"recommend" must be a whole number, got {k!r}')
    exclude = [] if exclude is None else exclude
    if not isinstance(exclude, list):
        raise Refused(MALFORMED, f'"exclude" must be a list of items, got {exclude!r}')
    items = tuple(_raw_id(item, "exclude") for item in exclude)
    return Request(user, k, items, _time(fields.get("time")))


def _raw_id(value, name: str) -> str:
    if type(value) is str and value and value.isascii():  # nearly always
        return value
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Refused(MALFORMED, f'"{name}" must hold a string or integer, got {value!r}')
    text = str(value)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise Refused(MALFORMED, f'"{name}" holds half a character, got {value!r}')
    return text


def _time(value) -> int | None:
    if value is None or (type(value) is int and 0 <= value < _LATEST):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(MALFORMED, f'"time" must be whole seconds since 1970, got {value!r}')
    if abs(value) >= _LATEST:
        raise Refused(MALFORMED, f'"time" {value} is no time')
    return value
