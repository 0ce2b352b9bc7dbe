"""Moments as people write and read them; everywhere else they are seconds since 1970."""

from __future__ import annotations

import datetime

from rec2pm_jax.errors import UserError


def parse_moment(text: str) -> int:
    """Seconds since 1970 of "2023-10-01", "2023-10-01T12:00" (UTC unless it says) or of a number.

    Raises:
      UserError: anything else.
    """
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{text!r} is no time; write a date such as 2023-10-01, 2023-10-01T12:00, or seconds "
            "since 1970."
        ) from None
    return int(moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp())


def show_moment(seconds: float) -> str:
    """A date and a time of day, UTC."""
    moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S")


def show_day(seconds: float) -> str:
    """A date, UTC."""
    return show_moment(seconds)[:10]
