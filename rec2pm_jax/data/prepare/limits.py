"""Limits of the format on disk, checked on every path: one log, append, compact and Beam."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from rec2pm_jax.data.dates import format_time
from rec2pm_jax.errors import UserError

MAX_EVENT_TYPES = int(np.iinfo(np.int8).max)
MAX_TIME_SPAN = int(np.iinfo(np.int32).max)  # seconds, 68 years


def check_event_types(names: Sequence[str] | pl.Series) -> None:
    """Refuse more event types than int8 can number.

    Args:
      names: the types of the whole dataset.

    Raises:
      UserError: there are too many.
    """
    if len(names) > MAX_EVENT_TYPES:
        raise UserError(
            f"More than {MAX_EVENT_TYPES} event types, which is all that can be stored; choose "
            f"another --type_column. Among them are {', '.join(map(repr, names[:3]))} and "
            f"{names[-1]!r}."
        )


def check_time_span(first: int, last: int, has_times: bool) -> None:
    """Refuse times that lie further apart than int32 can tell.

    Args:
      first, last: the smallest and the largest time of the whole dataset, seconds since 1970.
      has_times: false for ranks, which have no limit.

    Raises:
      UserError: the span is too long.
    """
    if has_times and last - first > MAX_TIME_SPAN:
        raise UserError(
            f"Timestamps span {last - first} seconds, more than int32 holds (68 years): from "
            f"{format_time(first)} to {format_time(last)}. Are some in another unit, or placeholders?"
        )
