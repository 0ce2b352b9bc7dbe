"""The users that a process holds, by name, the first to come first.

One dictionary of 200,000 users that come and go stops for 40 ms whenever its places are used up and it
is laid out anew; of many small ones each stops for less than a millisecond.
"""

from __future__ import annotations

from collections import OrderedDict

from rec2pm_jax.stream.mutable_user import MutableUser

_PARTS = 64  # a power of two


class UserCache:
    """Users by name, as a dictionary has them."""

    def __init__(self):
        self._parts: list[OrderedDict[str, MutableUser]] = [OrderedDict() for _ in range(_PARTS)]
        self._count = 0
        self._turn = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: str) -> bool:
        return name in self._parts[hash(name) & _PARTS - 1]

    def __getitem__(self, name: str) -> MutableUser:
        return self._parts[hash(name) & _PARTS - 1][name]

    def get(self, name: str) -> MutableUser | None:
        return self._parts[hash(name) & _PARTS - 1].get(name)

    def add(self, name: str, live: MutableUser) -> None:
        """Holds a user who was not held."""
        self._parts[hash(name) & _PARTS - 1][name] = live
        self._count += 1

    def pop(self) -> tuple[str, MutableUser]:
        """Takes out one of those who came first: parts take turns.

        Raises:
          KeyError: nobody is held.
        """
        for _ in range(_PARTS):
            self._turn = (self._turn + 1) % _PARTS
            if part := self._parts[self._turn]:
                self._count -= 1
                return part.popitem(last=False)
        raise KeyError("nobody is held")
