"""A user's state in bytes: the preference memory, then the exact memory.

An entry of the exact memory takes 8 bytes: 3 of the item id (4 in catalogues of 2^24 items and more,
so 9 bytes), 2 of the weight and 3 of the last time. Nothing of it is rounded.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np

from rec2pm_jax.methods.codec import check_format, decode, encode, slot_bytes
from rec2pm_jax.methods.exact_memory import CLOCK_BYTES, WEIGHT_BYTES
from rec2pm_jax.methods.method import Method
from rec2pm_jax.typing import ExactMemory, State


@dataclasses.dataclass(frozen=True)
class StateFormat:
    """How the states of one method are stored.

    Attributes:
      kind: format of the preference memory, one of `codec.FORMATS`.
      slots, dim: its shape, [G * C, D].
      entries: E of the exact memory.
      num_items: items of the catalogue.

    >>> StateFormat("int8", slots=4, dim=64, entries=32, num_items=5000).bytes
    528
    """

    kind: str
    slots: int
    dim: int
    entries: int
    num_items: int

    def __post_init__(self) -> None:
        check_format(self.kind)

    @cached_property
    def id_bytes(self) -> int:
        """Bytes of an entry's item id."""
        return 3 if self.num_items < 2**24 else 4

    @cached_property
    def widths(self) -> tuple[int, int, int]:
        """Bytes of an entry's item id, weight and last time."""
        return self.id_bytes, WEIGHT_BYTES, CLOCK_BYTES

    @cached_property
    def memory_bytes(self) -> int:
        """Bytes of the preference memory."""
        return self.slots * slot_bytes(self.kind, self.dim)

    @cached_property
    def exact_bytes(self) -> int:
        """Bytes of the exact memory."""
        return self.entries * sum(self.widths)

    @property
    def bytes(self) -> int:
        """Bytes of a state."""
        return self.memory_bytes + self.exact_bytes

    def encode(self, state: State) -> np.ndarray:
        """Return states as bytes: uint8 [U, bytes]; bookkeeping is left out.

        Args:
          state: U rows, numpy.
        """
        memory = encode(np.asarray(state.memory, np.float32), self.kind)
        columns = []
        for width, leaf in zip(self.widths, state.exact, strict=True):
            numbers = np.ascontiguousarray(leaf, "<u4")
            columns.append(numbers.view(np.uint8).reshape(*numbers.shape, 4)[..., :width])
        exact = np.concatenate(columns, axis=2).reshape(len(memory), self.exact_bytes)
        return np.concatenate([memory, exact], axis=1)

    def decode(self, encoded: np.ndarray) -> tuple[np.ndarray, ExactMemory]:
        """Return (preference memory float32 [U, slots, dim], exact memory) of `encode`d states.

        Args:
          encoded: uint8 [U, bytes].
        """
        memory = decode(encoded[:, : self.memory_bytes], self.kind, self.dim)
        exact = encoded[:, self.memory_bytes :]
        rows = exact.reshape(len(encoded), self.entries, sum(self.widths))
        leaves, begin = [], 0
        for width in self.widths:
            numbers = np.zeros((*rows.shape[:2], 4), np.uint8)
            numbers[..., :width] = rows[..., begin : begin + width]
            leaves.append(numbers.view("<u4")[..., 0].astype(np.int32))
            begin += width
        return memory.reshape(len(encoded), self.slots, self.dim), ExactMemory(*leaves)  # type: ignore[arg-type]


def widen_ids(states: StateFormat, encoded: bytes) -> bytes:
    """Return a state that was encoded with item ids of 3 bytes as one with ids of 4.

    A catalogue that grows past 2^24 items needs that once for each user.

    Args:
      states: the format with ids of 4 bytes.
      encoded: one state.
    """
    memory, exact = encoded[: states.memory_bytes], encoded[states.memory_bytes :]
    entries = np.frombuffer(exact, np.uint8).reshape(states.entries, sum(states.widths) - 1)
    return memory + np.insert(entries, 3, 0, axis=1).tobytes()


def state_format(method: Method, kind: str) -> StateFormat:
    """Return the format of a method's states.

    Args:
      method: whose states.
      kind: format of the preference memory, one of `codec.FORMATS`.

    Raises:
      UserError: the format is unknown.
    """
    memory = method.memory
    slots = memory.capacity * memory.slots
    return StateFormat(kind, slots, memory.slot_dim, memory.entries, method.num_items)
