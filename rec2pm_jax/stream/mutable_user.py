"""A user as a stream holds them: events are appended in place, memory stays as it is stored."""

from __future__ import annotations

from array import array

import numpy as np

from rec2pm_jax.methods.method import Method

NO_WATERMARK = -1


class MutableUser:
    """One user, changed in place by the engine that holds it.

    Segments may be due and not folded yet: what is due follows from `events` and `pending`, so a
    record written in between is as good as one written after.

    Attributes:
      events: n, events of the user so far.
      watermark: the largest `seq` applied, `NO_WATERMARK` before the first.
      last_time: seconds since 1970 of the newest event that had a time, or None.
      groups, segments: those of the `State`.
      memory: encoded as it is stored (see `codec`), or None before the first update. Between updates
        it is these bytes that count, so that a restart changes nothing.
      pending: C ints, `width` fields of one event after the other: item id, then time and type id as
        far as the model uses them.
    """

    __slots__ = ("events", "groups", "last_time", "memory", "pending", "segments", "watermark")

    def __init__(self):
        self.events = 0
        self.watermark = NO_WATERMARK
        self.last_time: int | None = None
        self.groups = 0
        self.segments = 0
        self.memory: bytes | None = None
        self.pending = array("i")


def due(method: Method, live: MutableUser, width: int) -> tuple[int, int]:
    """(segments to fold, events that leave the front of the pending ones) of a user now.

    `method.plan` alone decides, as in evaluation: pending events start at `plan(n).start`, and
    `plan(n).updates` segments are folded.
    """
    plan = method.plan(np.asarray(live.events))
    drop = int(plan.start) - (live.events - len(live.pending) // width)
    return int(plan.updates) - live.segments, drop
