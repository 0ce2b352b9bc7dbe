"""What a user has seen: an exact set beside the memory, which forgets ids.

It is kept only where asked for, and its bytes count apart from the memory (as bookkeeping).
"""

from __future__ import annotations

import struct
import sys
from array import array

import numpy as np

from rec2pm_jax.data.dataset import UserSequence
from rec2pm_jax.errors import UserError

SEEN_FORMATS = ("none", "items", "events")
_COUNT = struct.Struct("<I")
_LATEST = 2**32 - 1  # seconds since 1970, in the year 2106; later times count as this one


class SeenItems:
    """Distinct items of one user in the order of their first event; changed in place.

    Attributes:
      detailed: whether entries are pairs of item and event type with a time, or items alone.
      items: item ids.
      types: event-type ids, 0 for none; empty unless detailed.
      last: seconds since 1970 of the newest event of the pair, 0 for none; empty unless detailed.

    >>> seen = SeenItems(detailed=True)
    >>> seen.add(5, 1, 90)
    >>> seen.add(5, 1, 95)
    >>> seen.add(8, 2, 99)
    >>> seen.select(None, None).tolist(), seen.select(frozenset({1}), None).tolist()
    ([5, 8], [5])
    >>> seen.select(None, since=96).tolist(), seen.nbytes
    ([8], 22)
    """

    __slots__ = ("detailed", "items", "last", "types")

    def __init__(self, detailed: bool):
        self.detailed = detailed
        self.items = array("i")
        self.types, self.last = array("B"), array("I")

    @classmethod
    def of_sequence(
        cls, sequence: UserSequence, time_origin: int, detailed: bool = True
    ) -> SeenItems:
        """Return what `add` leaves after the events of a user of a dataset.

        Args:
          sequence: the events.
          time_origin: seconds since 1970 of time 0 of the events.
          detailed: see the class.
        """
        ids, types = sequence.ids, sequence.types
        seen = cls(detailed)
        kinds = np.zeros(len(ids), np.int64) if types is None or not detailed else types
        keys = np.asarray(ids, np.int64) << 8 | np.asarray(kinds, np.int64)
        _, first, entry = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(first)  # `np.unique` sorts by key
        seen.items.frombytes(np.asarray(ids, np.int32)[first[order]].tobytes())
        if detailed:
            last = np.zeros(len(first), np.int64)
            if sequence.times is not None:
                times = np.asarray(sequence.times, np.int64) + time_origin
                np.maximum.at(last, entry.reshape(-1), np.clip(times, 0, _LATEST))
            seen.types.frombytes(np.asarray(kinds, np.uint8)[first[order]].tobytes())
            seen.last.frombytes(last[order].astype(np.uint32).tobytes())
        return seen

    def add(self, item: int, kind: int, time: int | None) -> None:
        """Add an event.

        Args:
          item: its item id.
          kind: its event-type id, 0 for none.
          time: seconds since 1970, or None.
        """
        if not self.detailed:
            if item not in self.items:
                self.items.append(item)
            return
        when = min(time or 0, _LATEST)
        at = -1
        while True:
            try:
                at = self.items.index(item, at + 1)
            except ValueError:
                self.items.append(item)
                self.types.append(kind)
                self.last.append(when)
                return
            if self.types[at] == kind:
                self.last[at] = max(when, self.last[at])
                return

    def copy(self) -> SeenItems:
        """Return an independent copy."""
        other = SeenItems(self.detailed)
        other.items, other.types, other.last = self.items[:], self.types[:], self.last[:]
        return other

    def select(self, types: frozenset[int] | None, since: float | None) -> np.ndarray:
        """Return the items that were seen: int32 [n], maybe repeated.

        Args:
          types: event-type ids that count; None for all.
          since: seconds since 1970 from which on an event counts; None for all. An event without a
            time always counts. Both need a detailed set.
        """
        items = np.array(self.items, np.int32)
        kept = np.ones(len(items), bool)
        if types is not None:
            kept &= np.isin(np.array(self.types), list(types))
        if since is not None:
            last = np.array(self.last, np.int64)
            kept &= (last >= since) | (last == 0)
        return items[kept]

    @property
    def nbytes(self) -> int:
        """Bytes in a record: 4 for an item, 9 for an entry with type and time, and 4 for the count."""
        return _COUNT.size + len(self.items) * (9 if self.detailed else 4)

    def to_bytes(self) -> bytes:
        """Return the set as bytes, little-endian."""
        columns = (_little_endian(column).tobytes() for column in self._columns())
        return b"".join((_COUNT.pack(len(self.items)), *columns))

    @classmethod
    def from_bytes(cls, body: bytes, detailed: bool) -> SeenItems:
        """Return the set at the front of `body`, which `to_bytes` wrote; `nbytes` tells its size.

        Raises:
          UserError: the bytes end before the set does.
        """
        seen = cls(detailed)
        (count,) = _COUNT.unpack_from(body) if len(body) >= _COUNT.size else (2**32,)
        begin = _COUNT.size
        for column in seen._columns():
            end = begin + count * column.itemsize
            if end > len(body):
                raise UserError("A stored set of seen items is cut off: rebuild the store.")
            column.frombytes(body[begin:end])
            if sys.byteorder == "big":
                column.byteswap()
            begin = end
        return seen

    def _columns(self) -> tuple[array, ...]:
        return (self.items, self.types, self.last) if self.detailed else (self.items,)


def _little_endian(column: array) -> array:
    if sys.byteorder == "little":
        return column
    swapped = column[:]
    swapped.byteswap()
    return swapped
