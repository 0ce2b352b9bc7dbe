"""Requests as JSON lines, and the filters that they and `launch.recommend` take.

    {"user": U, "recommend": k, "exclude": [I, ...], "time": t,
     "exclude_seen": true | {"types": [T, ...], "days": n},
     "candidates": [I, ...],
     "allow": {"items": [I, ...], "categories": [C, ...]}, "deny": (the same)}

All fields after `recommend` are optional. A list for `allow` or `deny` is one of items.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from rec2pm_jax.data.reading.values import LATEST_TIMESTAMP, ValueRules
from rec2pm_jax.errors import nearest
from rec2pm_jax.stream.lines.events import (
    MALFORMED,
    PLAIN_RULES,
    Event,
    RejectedInput,
    parse_count,
    parse_event,
    parse_id,
    parse_ids,
    parse_time,
)

# `json.loads` guesses the encoding of bytes first, which takes as long as parsing them.
_decode_json = json.JSONDecoder().raw_decode
_MISSING = msgspec.UNSET


class _EventLine(msgspec.Struct, gc=False):
    """An event as most lines have it; msgspec refuses other lines, and skips further fields."""

    user: str | int
    item: str | int
    time: int | None = None
    type: str | None = None
    seq: int | None = None
    recommend: msgspec.Raw | msgspec.UnsetType = _MISSING


# Takes a sixth of the time of `_decode_json` and `parse_fields`.
_decode_event_line = msgspec.json.Decoder(_EventLine).decode


class SeenRule(NamedTuple):
    """Which items count as seen by a user.

    Attributes:
      types: names of event types; None for all events.
      days: only events so many days before the request, or less; None for any age.
    """

    types: tuple[str, ...] | None = None
    days: float | None = None


class ItemGroup(NamedTuple):
    """Items by raw id, and by the names of their categories."""

    items: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()


class Filters(NamedTuple):
    """What may be recommended, as a caller says it.

    Attributes:
      exclude_seen: leave out what the user has seen; None: leave nothing out.
      candidates: rank these items only, raw ids; None: all.
      allow: recommend nothing else; None: all.
      deny: recommend none of these.
    """

    exclude_seen: SeenRule | None = None
    candidates: tuple[str, ...] | None = None
    allow: ItemGroup | None = None
    deny: ItemGroup = ItemGroup()

    def describe(self) -> dict[str, Any]:
        """Return the filters as JSON has them.

        >>> Filters(exclude_seen=SeenRule(days=3)).describe()["exclude_seen"]
        {'types': None, 'days': 3}
        """
        groups = (None if x is None else x._asdict() for x in (self.allow, self.deny))
        seen = None if self.exclude_seen is None else self.exclude_seen._asdict()
        fields = dict(zip(self._fields, (seen, self.candidates, *groups), strict=True))
        return json.loads(json.dumps(fields))


NO_FILTERS = Filters()
RawFilters = Filters | Mapping[str, Any]  # what callers may pass from Python


class Request(NamedTuple):
    """A request for recommendations.

    Attributes:
      user: raw id.
      k: how many items are wanted.
      exclude: raw ids of items that must not be recommended; unknown ones are ignored.
      time: of the request, whole seconds since 1970, or None.
      filters: what else may not be recommended.
    """

    user: str
    k: int
    exclude: tuple[str, ...] = ()
    time: int | None = None
    filters: Filters = NO_FILTERS


def parse_line(line: bytes, rules: ValueRules = PLAIN_RULES) -> Event | Request:
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
      >>> request = parse_line(b'{"user": "7", "recommend": 5, "exclude_seen": {"days": 30}}')
      >>> request.k, request.filters.exclude_seen
      (5, SeenRule(types=None, days=30))
    """
    return _parse_usual(line, rules) or _parse_any(line, rules)


def _parse_usual(line: bytes, rules: ValueRules) -> Event | None:
    """Return the event of a line in the usual form, as `_parse_any` does; None for another line."""
    try:
        found = _decode_event_line(line)
    except (msgspec.MsgspecError, RecursionError):
        return None
    user, item, time, seq = found.user, found.item, found.time, found.seq
    if (
        found.recommend is not _MISSING
        or found.type == ""
        or (time is not None and not 0 <= time <= LATEST_TIMESTAMP)
        or (seq is not None and not 0 <= seq < 2**63)
    ):
        return None
    if type(user) is not str or not user or rules.id_type != "text":
        user = parse_id(user, "user", rules)
    if type(item) is not str or not item or rules.id_type != "text":
        item = parse_id(item, "item", rules)
    return Event(user, item, time, found.type, seq)


def _parse_any(line: bytes, rules: ValueRules) -> Event | Request:
    """Do as `parse_line`, field by field."""
    try:
        text = line.decode().strip()
        fields, end = _decode_json(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise RejectedInput(MALFORMED, f"not JSON ({error})") from error
    if end != len(text):
        raise RejectedInput(MALFORMED, f"not JSON (more follows after character {end})")
    return parse_fields(fields, rules)


def parse_fields(fields: Any, rules: ValueRules = PLAIN_RULES) -> Event | Request:
    """Do as `parse_line` with a line that was read as JSON already."""
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


def _parse_request(fields: Mapping[str, Any], user: str, rules: ValueRules) -> Request:
    k, exclude = fields["recommend"], fields.get("exclude")
    exclude = [] if exclude is None else exclude
    if not isinstance(exclude, list):
        raise RejectedInput(MALFORMED, f'"exclude" must be a list of items, got {exclude!r}')
    time = parse_time(fields.get("time"), rules)
    given = {name: fields[name] for name in Filters._fields if name in fields}
    return Request(
        user,
        parse_count(k, "recommend"),
        parse_ids(exclude, "exclude", rules),
        time,
        parse_filters(given, rules),
    )


def parse_filters(given: RawFilters, rules: ValueRules = PLAIN_RULES) -> Filters:
    """Check filters.

    Args:
      given: `Filters`, or a mapping with some of its fields as a line has them.
      rules: as for `parse_line`.

    Raises:
      RejectedInput: a field is unknown or malformed.

    >>> parse_filters({"exclude_seen": True, "deny": [7]}).deny
    ItemGroup(items=('7',), categories=())
    """
    if isinstance(given, Filters) or not given:
        return given if isinstance(given, Filters) else NO_FILTERS
    _check_fields(given, Filters._fields, "filters")
    candidates, allow, deny = (given.get(name) for name in ("candidates", "allow", "deny"))
    if candidates is not None:
        candidates = tuple(dict.fromkeys(parse_ids(candidates, "candidates", rules)))
        if not candidates:
            raise RejectedInput(MALFORMED, '"candidates" is empty; leave it out to rank all items')
    return Filters(
        _parse_seen(given.get("exclude_seen")),
        candidates,
        None if allow is None else _parse_group(allow, "allow", rules),
        ItemGroup() if deny is None else _parse_group(deny, "deny", rules),
    )


def _parse_seen(value: Any) -> SeenRule | None:
    if value is None or value is False:
        return None
    if value is True or value == "all":
        return SeenRule()
    if not isinstance(value, Mapping):
        raise RejectedInput(
            MALFORMED,
            f'"exclude_seen" must be true or hold "types" and "days", got {value!r}',
        )
    _check_fields(value, SeenRule._fields, "exclude_seen")
    types, days = value.get("types"), value.get("days")
    types = None if types is None else parse_ids(types, "exclude_seen.types")
    is_number = isinstance(days, numbers.Real) and not isinstance(days, bool)
    if days is not None and not (is_number and math.isfinite(days) and days > 0):
        raise RejectedInput(
            MALFORMED, f'"exclude_seen.days" must be a number above 0, got {days!r}'
        )
    return SeenRule(types, days)


def _parse_group(value: Any, field: str, rules: ValueRules) -> ItemGroup:
    if not isinstance(value, Mapping):
        return ItemGroup(parse_ids(value, field, rules))
    _check_fields(value, ItemGroup._fields, field)
    return ItemGroup(
        parse_ids(value.get("items") or (), f"{field}.items", rules),
        parse_ids(value.get("categories") or (), f"{field}.categories"),
    )


def _check_fields(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in given:
        if name not in known:
            raise RejectedInput(
                MALFORMED, f'"{what}" has no field {name!r}.{nearest(str(name), known)}'
            )
