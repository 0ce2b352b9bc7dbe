"""Events as JSON lines, checked field by field; `requests` reads requests.

One object per line, in time order:

    {"user": U, "item": I, "time": t (optional), "type": T (optional), "seq": N (optional)}

`seq` numbers the events of one user upwards, so that a repeated delivery is recognised. Ids, types and
times follow the rules of the prepared log, see `data.reading.values`: 123, 123.0 and "123" are the same
id. A time is seconds since 1970 or text, ISO 8601 unless the log had a --time_format. Other fields are
ignored.
"""

from __future__ import annotations

import datetime
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

PLAIN_RULES = ValueRules()  # ids as they are, UTC and ISO 8601


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


def parse_event(
    fields: Mapping[str, Any], user: str = "", rules: ValueRules = PLAIN_RULES
) -> Event:
    """Check the fields of an event.

    Args:
      fields: `item`, and optionally `time`, `type` and `seq`.
      user: raw id of its user; "" if it is known from elsewhere.
      rules: as for `requests.parse_line`.

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


def parse_id(value: Any, field: str, rules: ValueRules = PLAIN_RULES) -> str:
    """Return the text of an id.

    Args:
      value: text, or a whole number of any type.
      field: what the message calls it.
      rules: as for `requests.parse_line`.

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


def parse_ids(
    given: Any, field: str = "exclude", rules: ValueRules = PLAIN_RULES
) -> tuple[str, ...]:
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


def parse_time(value: Any, rules: ValueRules = PLAIN_RULES) -> int | None:
    """Return whole seconds since 1970, or None for None.

    Args:
      value: seconds since 1970, as a number or text, ISO 8601 text or a datetime.
      rules: as for `requests.parse_line`; the zone of times that state none, and how text is written.

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
