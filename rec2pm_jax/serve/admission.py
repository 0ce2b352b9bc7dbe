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
    """Counts requests and the bytes of their bodies, from their arrival until their answer.

    Used by the event loop only.

    Attributes:
      waiting: requests that have no answer yet.
      waiting_bytes: of their bodies.
      refused: requests so far that were not admitted.
    """

    def __init__(self, max_waiting: int):
        """Admit at most `max_waiting` requests at once."""
        self.waiting = self.waiting_bytes = self.refused = 0
        self._max_waiting = max_waiting

    @contextlib.contextmanager
    def admit(self) -> Iterator[Admitted]:
        """Admit a request for the time of the block.

        Raises:
          Overloaded: there is no room.
        """
        if self.waiting >= self._max_waiting:
            self.refused += 1
            raise Overloaded(
                f"{self.waiting} requests wait already: try again in {RETRY_AFTER_S} s."
            )
        admitted = Admitted(self)
        self.waiting += 1
        try:
            yield admitted
        finally:
            self.waiting -= 1
            self.waiting_bytes -= admitted.num_bytes


class Admitted:
    """One request that was admitted.

    Attributes:
      num_bytes: of its body that have arrived.
    """

    def __init__(self, admission: Admission):
        self._admission, self.num_bytes = admission, 0

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
