"""Back-pressure: how much may wait at once. What is beyond that is refused, and not queued."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

MAX_WAITING_BYTES = (
    64 << 20
)  # of the bodies of all requests that wait; objects take ten times as much
RETRY_AFTER_S = 1


class Overloaded(Exception):
    """Too much waits; the message is for the client, who should try again in `RETRY_AFTER_S`."""


class Admission:
    """Counts requests that wait for the engine, and the bytes of all bodies that have arrived.

    A request whose body is not complete takes bytes and no place: slow clients delay no other.
    Used by the event loop only.

    Attributes:
      waiting: requests that wait for the engine.
      waiting_bytes: of the bodies of all requests without an answer.
      refused: requests so far that were not admitted.
    """

    def __init__(self, max_waiting: int):
        """Let at most `max_waiting` requests wait at once."""
        self.waiting = self.waiting_bytes = self.refused = 0
        self.max_waiting = max_waiting

    @contextlib.contextmanager
    def admit(self) -> Iterator[Admitted]:
        """Count a request until the block ends."""
        admitted = Admitted(self)
        try:
            yield admitted
        finally:
            self.waiting -= admitted.has_place
            self.waiting_bytes -= admitted.num_bytes


class Admitted:
    """One request.

    Attributes:
      num_bytes: of its body that have arrived.
      has_place: whether it waits for the engine.
    """

    def __init__(self, admission: Admission):
        self._admission, self.num_bytes, self.has_place = admission, 0, False

    def add(self, num_bytes: int) -> None:
        """Count a further part of its body.

        Raises:
          Overloaded: there is no room.
        """
        admission = self._admission
        if admission.waiting_bytes + num_bytes > MAX_WAITING_BYTES:
            admission.refused += 1
            raise Overloaded(
                f"{admission.waiting_bytes >> 20} MiB wait already: try again in {RETRY_AFTER_S} s."
            )
        self.num_bytes += num_bytes
        admission.waiting_bytes += num_bytes

    def take_place(self) -> None:
        """Begin to wait for the engine.

        Raises:
          Overloaded: there is no room.
        """
        admission = self._admission
        if admission.waiting >= admission.max_waiting:
            admission.refused += 1
            raise Overloaded(
                f"{admission.waiting} requests wait already: try again in {RETRY_AFTER_S} s."
            )
        admission.waiting += 1
        self.has_place = True
