"""Ids, times and numbers as single values: the rules that columns of logs follow, too.

`column_checks.py` and `times.py` apply these rules to whole columns. Streams, the Python API and
exported models call the functions here, so that an event means the same wherever it enters. This module
needs neither polars nor JAX.
"""

from __future__ import annotations

import datetime
import math
import numbers
import re
import zoneinfo
from collections.abc import Mapping
from typing import Any, NamedTuple

from rec2pm_jax.errors import UserError

LATEST_TIMESTAMP = 100_000_000_000  # seconds, the year 5138; milliseconds passed it in 1973
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
ID_TYPES = ("text", "int")

# Python and polars (Rust) read these expressions alike.
ISO = (
    r"^\s*(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ](?P<time>[0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:[.,](?P<fraction>[0-9]+))?)?"
    r"\s*(?P<zone>Z|z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?\s*$"
)
NUMBER = r"^\s*(?P<whole>[+-]?[0-9]+)(?:\.(?P<fraction>[0-9]*))?\s*$"
SCIENTIFIC = r"^\s*[+-]?[0-9]+(?:\.[0-9]+)?[eE][+-]?[0-9]{1,3}\s*$"
DECIMAL_COMMA = r"^\s*[+-]?[0-9]+,[0-9]+\s*$"
WHOLE_FLOAT = r"^([0-9]+)\.0+$"

NOT_A_TIME = "a time that is neither a number nor ISO 8601 text such as 2024-05-31T12:00:00Z"
NEGATIVE_TIME = "a negative timestamp (before 1970)"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Moment(NamedTuple):
    """A time.

    Attributes:
      seconds: whole seconds since 1970, UTC.
      fraction: nanoseconds after that.
    """

    seconds: int
    fraction: int


class ValueRules(NamedTuple):
    """How the values of a dataset's logs are read, for events that come one by one.

    Attributes:
      id_type: as in `parse_id`.
      zone: as in `parse_time`.
      time_format: as in `parse_time`, for text. Numbers are seconds.

    >>> ValueRules.of({"reading": {"id_type": "int"}}).read_id("17850.0")
    '17850'
    """

    id_type: str = "text"
    zone: str = ""
    time_format: str = ""

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> ValueRules:
        """Return the rules that `dataset.json` states."""
        known = info.get("reading") or {}
        return cls(
            known.get("id_type", "text"), known.get("time_zone", ""), known.get("time_format", "")
        )

    def read_id(self, value: object) -> str:
        """Return the id of a user or an item; UserError as `parse_id`."""
        return parse_id(value, self.id_type)

    def read_time(self, value: object) -> Moment:
        """Return a time; UserError as `parse_time`."""
        return parse_time(value, "s", self.zone, self.time_format if isinstance(value, str) else "")


def parse_id(value: object, id_type: str = "text") -> str:
    """Return the text of a user id, an item id or an event type.

    Args:
      value: an integer, a float that is whole, or text. The number 7, 7.0 and the text "7" are one id.
      id_type: "text", or "int", where the text "7.0" is the id "7", too. Other text stays as it is.

    Raises:
      UserError: an empty, negative, fractional or nested id.

    >>> parse_id(17850), parse_id(17850.0), parse_id("17850.0"), parse_id("17850.0", "int")
    ('17850', '17850', '17850.0', '17850')
    """
    if isinstance(value, str) and value:
        return re.sub(WHOLE_FLOAT, r"\1", value) if id_type == "int" else value
    if value is None or value == "":
        raise UserError(f"an empty id ({value!r})")
    if isinstance(value, bool) or not isinstance(value, str | numbers.Real):
        raise UserError(f"an id that is neither a number nor text ({value!r})")
    number, part = _split(value)
    if number is None or part:
        raise UserError(f"not a whole number ({value!r})")
    if number < 0:
        raise UserError(f"a negative id ({value!r})")
    return str(number)


def parse_whole_number(value: object) -> int:
    """Return the whole number that a number or a text states.

    Raises:
      UserError: the value states none, or none that int64 holds.

    >>> parse_whole_number("1.0"), parse_whole_number(2)
    (1, 2)
    """
    whole, part = _split(value)
    if whole is None or part or not -(2**63) <= whole < 2**63:
        raise UserError(f"not a whole number ({value!r})")
    return whole


def parse_time(value: object, unit: str = "s", zone: str = "", time_format: str = "") -> Moment:
    """Return the time that a number, a text or a datetime states.

    Args:
      value: a number of `unit`s since 1970, text that states one, ISO 8601 text, or a datetime.
      unit: s, ms, us or ns.
      zone: of times that state none, for example Europe/Berlin; empty: UTC.
      time_format: how text is written, for example "%m/%d/%Y %H:%M"; empty: numbers or ISO 8601.

    Raises:
      UserError: the value is no time, or lies before 1970 or after the year 5000.

    >>> parse_time(1717156800), parse_time("2024-05-31 12:00:00+00").seconds
    (Moment(seconds=1717156800, fraction=0), 1717156800)
    >>> parse_time("1717156800.25")
    Moment(seconds=1717156800, fraction=250000000)
    """
    if isinstance(value, datetime.datetime):
        return _from_datetime(value, 0, zone, value)
    if time_format:
        try:
            parsed = datetime.datetime.strptime(str(value).strip(), time_format)
        except ValueError:
            raise UserError(f"a time that is not written as {time_format} ({value!r})") from None
        return _from_datetime(parsed, 0, zone, value)
    whole, part = _split(value)
    if whole is not None:
        scale = PER_SECOND[unit]
        seconds, rest = divmod(whole, scale)
        moment = Moment(seconds, rest * (10**9 // scale) + part // scale)
        return _check_range(moment, value)
    match = re.match(ISO, value) if isinstance(value, str) else None
    if match is None:
        raise UserError(f"{NOT_A_TIME} ({value!r})")
    time, digits = match["time"] or "00:00", match["zone"]
    time += ":00" if len(time) == 5 else ""
    try:
        parsed = datetime.datetime.strptime(f"{match['date']} {time}", "%Y-%m-%d %H:%M:%S")
    except ValueError:
        raise UserError(f"no such date or time of day ({value!r})") from None
    if digits:
        parsed = parsed.replace(tzinfo=_fixed_zone(digits))
    fraction = int((match["fraction"] or "").ljust(9, "0")[:9])
    return _from_datetime(parsed, fraction, zone, value)


def _split(value: object) -> tuple[int | None, int]:
    """Return the whole part of a number, rounded down, and the rest in billionths.

    The whole part is None if the value is no number.
    """
    if isinstance(value, str):
        match = re.match(NUMBER, value)
        if match:
            return int(match["whole"]), int((match["fraction"] or "").ljust(9, "0")[:9])
        value = float(value) if re.match(SCIENTIFIC, value) else None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None, 0
    if isinstance(value, numbers.Integral):
        return int(value), 0
    number = float(value)
    if not abs(number) < 2**53:  # also not a number; beyond, floats skip integers
        return None, 0
    whole = math.floor(number)
    # A float near 1.7e9 has six decimal places.
    return whole, min(round((number - whole) * 1e6), 999_999) * 1000


def _fixed_zone(text: str) -> datetime.tzinfo:
    if text[0] not in "+-":
        return datetime.UTC
    digits = text.replace(":", "").ljust(5, "0")
    offset = datetime.timedelta(hours=int(digits[1:3]), minutes=int(digits[3:5]))
    try:
        if int(digits[3:5]) > 59:
            raise ValueError
        return datetime.timezone(-offset if text[0] == "-" else offset)
    except ValueError:
        raise UserError(f"no such time zone ({text!r})") from None


def _from_datetime(time: datetime.datetime, fraction: int, zone: str, value: object) -> Moment:
    """Return a datetime and nanoseconds after it, in `zone` if it states none."""
    if time.tzinfo is None:
        try:
            time = time.replace(tzinfo=zoneinfo.ZoneInfo(zone) if zone else datetime.UTC)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            raise UserError(f"the time zone {zone} is unknown; write for example UTC") from None
        utc = time.astimezone(datetime.UTC)
        if utc.astimezone(time.tzinfo).replace(tzinfo=None) != time.replace(tzinfo=None):
            raise UserError(f"no such time in {zone} ({value!r})")
        time = utc
    since = time - _EPOCH
    seconds = since.days * 86_400 + since.seconds
    return _check_range(Moment(seconds, fraction or since.microseconds * 1000), value)


def _check_range(moment: Moment, value: object) -> Moment:
    if moment.seconds < 0:
        raise UserError(f"{NEGATIVE_TIME} ({value!r})")
    if moment.seconds > LATEST_TIMESTAMP:
        raise UserError(f"a timestamp beyond the year 5000; is it in another unit? ({value!r})")
    return moment
