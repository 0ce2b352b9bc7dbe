"""Events and requests as JSON lines, checked field by field.

One object per line, in time order:

    {"user": U, "item": I, "time": t (optional), "type": T (optional), "seq": N (optional)}
    {"user": U, "recommend": k, "exclude": [I, ...] (optional), "time": t (optional)}

`seq` numbers the events of one user upwards, so that a repeated delivery is recognised. Ids, types and
times follow the rules of the prepared log, see `data.reading.values`: 123, 123.0 and "123" are the same
id. A time is seconds since 1970 or text, ISO 8601 unless the log had a --time_format. Other fields are
ignored.
"""

from __future__ import annotations

import datetime
import json
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rec2pm_jax.data.reading import values
from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.errors import UserError

MALFORMED = "malformed"
UNKNOWN_ITEM = "unknown item"
UNKNOWN_TYPE = "unknown event type"
OUT_OF_ORDER = "out of order"
FAR_FUTURE = "far future"
DUPLICATE = "duplicate"

# What callers may pass from Python.
RawId = str | numbers.Real
RawEvent = RawId | Mapping[str, Any]
RawIds = Iterable[RawId] | RawId
RawEvents = Iterable[RawEvent] | RawEvent
RawTime = str | float | datetime.datetime | None

_PLAIN = ValueRules()  # ids as they are, UTC and ISO 8601

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


def parse_line(line: bytes, rules: ValueRules = _PLAIN) -> Event | Request:
    """Parse one line of a stream.

    Args:
      line: UTF-8, with or without its line break.
      rules: how the ids and times of the log were read that the model was trained on.

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
    user = parse_id(fields["user"], "user", rules)
    if "item" in fields:
        return parse_event(fields, user, rules)
    return _parse_request(fields, user, rules)


def parse_event(fields: Mapping[str, Any], user: str = "", rules: ValueRules = _PLAIN) -> Event:
    """Check the fields of an event.

    Args:
      fields: `item`, and optionally `time`, `type` and `seq`.
      user: raw id of its user; "" if it is known from elsewhere.
      rules: as for `parse_line`.

    Raises:
      RejectedInput: a field is missing or malformed.
    """
    if "item" not in fields:
        raise RejectedInput(MALFORMED, '"item" is missing')
    kind = fields.get("type")
    kind = None if kind is None else parse_id(kind, "type")  # types have no --id_type
    seq = fields.get("seq")
    if seq is not None and (not _is_whole(seq) or not 0 <= seq < 2**63):
        raise RejectedInput(MALFORMED, f'"seq" must be a whole number below 2^63, got {seq!r}')
    seq = None if seq is None else int(seq)
    item = parse_id(fields["item"], "item", rules)
    return Event(user, item, parse_time(fields.get("time"), rules), kind, seq)


def _parse_request(fields: Mapping[str, Any], user: str, rules: ValueRules) -> Request:
    k, exclude = fields["recommend"], fields.get("exclude")
    exclude = [] if exclude is None else exclude
    if not isinstance(exclude, list):
        raise RejectedInput(MALFORMED, f'"exclude" must be a list of items, got {exclude!r}')
    time = parse_time(fields.get("time"), rules)
    return Request(user, parse_count(k, "recommend"), parse_ids(exclude, "exclude", rules), time)


def parse_id(value: Any, field: str, rules: ValueRules = _PLAIN) -> str:
    """Return the text of an id.

    Args:
      value: text, or a whole number of any type.
      field: what the message calls it.
      rules: as for `parse_line`.

    Raises:
      RejectedInput: it is no id.

    >>> parse_id(7, "user"), parse_id(7.0, "user"), parse_id("7", "user")
    ('7', '7', '7')
    """
    if type(value) is str and value and value.isascii() and rules.id_type == "text":
        return value  # the usual case, checked first
    try:
        text = rules.read_id(value)
    except UserError as error:
        raise RejectedInput(
            MALFORMED, f'"{field}" must hold a string or integer, got {value!r}: {error}'
        ) from None
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise RejectedInput(MALFORMED, f'"{field}" holds half a character, got {value!r}')
    return text


def parse_ids(given: Any, field: str = "exclude", rules: ValueRules = _PLAIN) -> tuple[str, ...]:
    """Return the texts of several ids; a string or a number stands for one.

    Raises:
      RejectedInput: `given` is not iterable, or one of its values is no id.

    >>> parse_ids(["a", 7]), parse_ids("42")
    (('a', '7'), ('42',))
    """
    if isinstance(given, str | numbers.Real):
        given = (given,)
    if not isinstance(given, Iterable):
        raise RejectedInput(MALFORMED, f'"{field}" must be a list of items, got {given!r}')
    return tuple(parse_id(value, field, rules) for value in given)


def parse_count(value: Any, field: str) -> int:
    """Return a whole number of any type, such as one of numpy.

    Raises:
      RejectedInput: it is none.
    """
    if not _is_whole(value):
        raise RejectedInput(MALFORMED, f'"{field}" must be a whole number, got {value!r}')
    return int(value)


def parse_time(value: Any, rules: ValueRules = _PLAIN) -> int | None:
    """Return whole seconds since 1970, or None for None.

    Args:
      value: seconds since 1970, as a number or text, ISO 8601 text or a datetime.
      rules: as for `parse_line`; the zone of times that state none, and how text is written.

    Raises:
      RejectedInput: it is none of these, or outside of the years 1970 to 5138.

    >>> parse_time(1717156800), parse_time("2024-05-31T12:00:00Z"), parse_time(1717156800.25)
    (1717156800, 1717156800, 1717156800)
    """
    if value is None or (type(value) is int and 0 <= value <= values.LATEST_TIMESTAMP):
        return value
    try:
        return rules.read_time(value).seconds
    except UserError as error:
        wanted = f"text like {rules.time_format}" if rules.time_format else "ISO 8601 text"
        raise RejectedInput(
            MALFORMED, f'"time" must be seconds since 1970 or {wanted}: {error}'
        ) from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
