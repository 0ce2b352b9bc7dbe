"""What an engine reports: events applied and rejected, and answers."""

from __future__ import annotations

from typing import NamedTuple

from rec2pm_jax.stream.lines.events import RejectedInput
from rec2pm_jax.stream.recommender import Recommendation

Rejections = list[tuple[int, RejectedInput]]  # (index of the event, why it was left out)


class Ingested(NamedTuple):
    """What became of a list of events.

    Attributes:
      events: how many were applied.
      updates: memory updates computed.
      rejected: the others.
    """

    events: int
    updates: int
    rejected: Rejections


class Answer(NamedTuple):
    """What is recommended to a user.

    Attributes:
      user: raw id.
      items: best first.
      events, updates: events of the user so far, and memory updates from them.
    """

    user: str
    items: list[Recommendation]
    events: int
    updates: int
