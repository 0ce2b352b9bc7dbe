"""Pending events as bytes, in the form in which they are stored: about four bytes for an event.

A field is a whole number >= 0 in seven bits of each byte, the lowest first; all bytes of a number but
the last have the bit 128 (LEB128). An event has its item id, then the seconds since the event before
it if the model reads times, then its type id if the model reads types. Seconds count back from the
newest event, whose time the user's record has.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_BITS = 7


class PendingEvents:
    """Events of one user that no update has used, oldest first.

    >>> events = PendingEvents(width=2)
    >>> events.append((70_000, 0))
    >>> events.append((5, 3600))
    >>> len(events), len(events.to_bytes()), events.numbers().tolist()
    (2, 7, [[70000, 0], [5, 3600]])
    """

    __slots__ = ("_count", "_data", "_width")

    def __init__(self, data: bytes = b"", count: int = 0, width: int = 1):
        """Take events as they are stored; without arguments there are none.

        Args:
          data: as `to_bytes` returns it.
          count: how many events these are.
          width: fields of an event, 1 to 3.
        """
        self._data, self._count, self._width = bytearray(data), count, width

    @classmethod
    def of(cls, numbers: np.ndarray) -> PendingEvents:
        """Return events of given fields, whole numbers >= 0, [n, width]."""
        return cls(_encode(numbers.reshape(-1)), *numbers.shape)

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PendingEvents) and self._data == other._data

    __hash__ = None  # type: ignore[assignment]

    def append(self, fields: Iterable[int]) -> None:
        """Add the newest event, whole numbers >= 0."""
        data = self._data
        for number in fields:
            while number > 127:
                data.append(number & 127 | 128)
                number >>= _BITS
            data.append(number)
        self._count += 1

    def drop(self, count: int) -> None:
        """Remove the oldest events, as many as `count` if there are so many."""
        count = min(count, self._count)
        if count > 0:
            ends = np.flatnonzero(np.frombuffer(bytes(self._data), np.uint8) < 128)
            del self._data[: int(ends[count * self._width - 1]) + 1]
            self._count -= count

    def numbers(self) -> np.ndarray:
        """Return the fields, int64 [n, width]."""
        return _decode(bytes(self._data)).reshape(-1, self._width)

    def to_bytes(self) -> bytes:
        """Return the events as they are stored."""
        return bytes(self._data)


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
