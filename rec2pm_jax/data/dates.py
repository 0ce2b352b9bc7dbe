"""Times as text. Everywhere else a time is an integer: seconds since 1970, UTC."""

from __future__ import annotations

import datetime

from rec2pm_jax.data.reading import values
from rec2pm_jax.errors import UserError


def parse_time(text: str) -> int:
    """Return the seconds since 1970 that a text states.

    Args:
      text: a date ("2023-10-01"), a date and time ("2023-10-01T12:00"), or a number of seconds. A
        time without a zone is UTC.

    Returns:
      Seconds since 1970.

    Raises:
      UserError: the text is none of these.

    >>> parse_time("2023-10-01T00:01"), parse_time("1696118460")
    (1696118460, 1696118460)
    """
    try:
        return values.parse_time(text).seconds
    except UserError:
        raise UserError(
            f"{text!r} is no time; write a date such as 2023-10-01, 2023-10-01T12:00, or seconds "
            "since 1970."
        ) from None


def format_time(seconds: float) -> str:
    """Return the date and time of day (UTC) of a number of seconds since 1970."""
    time = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def format_date(seconds: float) -> str:
    """Return the date (UTC) of a number of seconds since 1970."""
    return format_time(seconds)[:10]
