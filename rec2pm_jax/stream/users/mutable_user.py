"""A user in a streaming process: events are appended in place, memory stays encoded."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from rec2pm_jax.stream.users.pending import PendingEvents
from rec2pm_jax.stream.users.seen import SeenItems

NO_WATERMARK = -1
IN_STORE = b""  # stands for a memory that is in the store, and was not read yet


class MutableUser(msgspec.Struct, gc=False):
    """One user, changed in place by the engine that holds it.

    Some pending events may already fill a segment. How many segments are missing in the memory
    follows from `events`, so a record written before the update is as good as one written after it.
    An event changes everything but the memory, so the memory is read only for updates and requests.

    The garbage collector does not see users, which form no reference cycles. It would look at all that
    were loaded since its last run, for a tenth of a second.

    Attributes:
      pending: the newest events, read as they are.
      events: n, how many events the user has had.
      watermark: the largest `seq` applied; `NO_WATERMARK` before the first.
      last_time: seconds since 1970 of the newest event that had a time, or None.
      groups, segments: those of the `State`.
      memory: encoded as it is stored (see `methods.codec`), None before the first update, or
        `IN_STORE`. It stays encoded between updates, so that reading it from the store again changes
        nothing.
      state_changed: whether the store lacks the newest memory.
      seen: what the user has seen, or None if the store does not keep that.
    """

    pending: PendingEvents
    events: int = 0
    watermark: int = NO_WATERMARK
    last_time: int | None = None
    groups: int = 0
    segments: int = 0
    memory: bytes | None = None
    state_changed: bool = False
    seen: SeenItems | None = None

    def gap_before(self, time: int | None) -> int:
        """Return the seconds from the newest event to a time since 1970; 0 if one of them has none."""
        return 0 if time is None or self.last_time is None else time - self.last_time

    def append(self, fields: Iterable[int], time: int | None, seq: int | None) -> None:
        """Add the newest event.

        Args:
          fields: see `PendingEvents`.
          time: seconds since 1970, not before `last_time`.
          seq: above the watermark.
        """
        self.events += 1
        if time is not None:
            self.last_time = time
        if seq is not None:
            self.watermark = seq
        self.pending.append(fields)
