"""Pending events as bytes, in the form in which they are stored: about four bytes for an event.

A field is a whole number >= 0 in seven bits of each byte, the lowest first; all bytes of a number but
the last have the bit 128 (LEB128). An event has its item id, then the seconds since the event before
it if the model reads times, then its type id if the model reads types. Seconds count back from the
newest event, whose time the user's record has.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

_BITS = 7


class PendingEvents(msgspec.Struct, gc=False):
    """Events of one user that no update has used, oldest first.

    Attributes:
      width: fields of an event, 1 to 3.
      count: number of events.
      data: the events as they are stored.

    >>> events = PendingEvents(width=2)
    >>> events.append((70_000, 0))
    >>> events.append((5, 3600))
    >>> len(events), len(events.data), events.numbers().tolist()
    (2, 7, [[70000, 0], [5, 3600]])
    """

    width: int
    count: int = 0
    data: bytearray = msgspec.field(default_factory=bytearray)

    @classmethod
    def of(cls, numbers: np.ndarray) -> PendingEvents:
        """Return events of given fields, whole numbers >= 0, [n, width]."""
        count, width = numbers.shape
        return cls(width, count, bytearray(_encode(numbers.reshape(-1))))

    def __len__(self) -> int:
        return self.count

    def append(self, fields: Iterable[int]) -> None:
        """Add the newest event, whole numbers >= 0."""
        data = self.data
        for number in fields:
            while number > 127:
                data.append(number & 127 | 128)
                number >>= _BITS
            data.append(number)
        self.count += 1

    def drop(self, count: int) -> None:
        """Remove the oldest events, as many as `count` if there are so many."""
        count = min(count, self.count)
        if count > 0:
            ends = np.flatnonzero(np.frombuffer(bytes(self.data), np.uint8) < 128)
            del self.data[: int(ends[count * self.width - 1]) + 1]
            self.count -= count

    def numbers(self) -> np.ndarray:
        """Return the fields, int64 [n, width]."""
        return _decode(bytes(self.data)).reshape(-1, self.width)


def _encode(numbers: np.ndarray) -> bytes:
    shifted = numbers.astype(np.uint64)[:, None] >> (_BITS * np.arange(10, dtype=np.uint64))
    used = shifted > 0
    used[:, 0] = True
    continued = np.zeros_like(used)
    continued[:, :-1] = used[:, 1:]
    return (shifted & np.uint64(127) | continued * np.uint64(128))[used].astype(np.uint8).tobytes()


def _decode(data: bytes) -> np.ndarray:
    """Return the numbers int64 [n]."""
    read = np.frombuffer(data, np.uint8)
    if not len(read):
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(read < 128)
    begins = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(read)) - np.repeat(begins, ends - begins + 1)
    return np.add.reduceat((read & 127).astype(np.int64) << (_BITS * place), begins)
