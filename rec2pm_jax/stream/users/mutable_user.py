"""A user in a streaming process: events are appended in place, memory stays encoded."""

from __future__ import annotations

from array import array

from rec2pm_jax.stream.users.seen import SeenItems

NO_WATERMARK = -1


class MutableUser:
    """One user, changed in place by the engine that holds it.

    Some pending events may already fill a segment. How many segments are missing in the memory
    follows from `events`, so a record written before the update is as good as one written after it.

    Attributes:
      events: n, how many events the user has had.
      watermark: the largest `seq` applied; `NO_WATERMARK` before the first.
      last_time: seconds since 1970 of the newest event that had a time, or None.
      groups, segments: those of the `State`.
      memory: encoded as it is stored (see `methods.codec`), or None before the first update. It stays
        encoded between updates, so that reading it from the store again changes nothing.
      pending: C ints, one event after the other: item id, then time and type id if the model uses
        them. An event has the same number of fields throughout, 1 to 3.
      seen: what the user has seen, or None if the store does not keep that.
    """

    __slots__ = (
        "events", "groups", "last_time", "memory", "pending", "seen", "segments", "watermark"
    )  # fmt: skip

    def __init__(self) -> None:
        self.events = 0
        self.watermark = NO_WATERMARK
        self.last_time: int | None = None
        self.groups = 0
        self.segments = 0
        self.memory: bytes | None = None
        self.pending = array("i")
        self.seen: SeenItems | None = None
