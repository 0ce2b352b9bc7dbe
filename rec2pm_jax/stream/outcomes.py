"""What comes out: recommended items, events applied and rejected, and answers."""

from __future__ import annotations

from typing import NamedTuple

from rec2pm_jax.stream.lines.events import RejectedInput

Rejections = list[tuple[int, RejectedInput]]  # (index of the event, why it was left out)


class Recommendation(NamedTuple):
    """One recommended item.

    Attributes:
      item: raw id.
      title: of the item; the raw id if the data has no title.
      score: higher is better; None for a user without events, who gets the most frequent items.
    """

    item: str
    title: str
    score: float | None


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
      popular: whether the items are the most frequent ones, since the user has no events.
      wanted: how many items were asked for; filters may leave fewer.
    """

    user: str
    items: list[Recommendation]
    events: int
    updates: int
    popular: bool
    wanted: int
