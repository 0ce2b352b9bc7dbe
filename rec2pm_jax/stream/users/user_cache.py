"""The users that a process holds, by name.

A dictionary of 200,000 users that come and go stops for 40 ms each time it is resized. With many small
dictionaries each of them stops for less than a millisecond.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from rec2pm_jax.stream.users.mutable_user import MutableUser

_SHARDS = 64  # a power of two


class UserCache:
    """A mapping of names to users that knows who was added first."""

    def __init__(self) -> None:
        self._shards: list[OrderedDict[str, MutableUser]] = [OrderedDict() for _ in range(_SHARDS)]
        self._count = 0
        self._last_shard = 0  # that a user was evicted from

    def __len__(self) -> int:
        return self._count

    def find(self, names: Iterable[str]) -> dict[str, MutableUser]:
        """Return those of the users that the cache holds."""
        shards, found = self._shards, {}
        for name in names:
            user = shards[hash(name) & _SHARDS - 1].get(name)
            if user is not None:
                found[name] = user
        return found

    def add(self, name: str, user: MutableUser) -> None:
        """Add a user that the cache does not hold."""
        self._shards[hash(name) & _SHARDS - 1][name] = user
        self._count += 1

    def pop_oldest(self) -> tuple[str, MutableUser]:
        """Remove and return the user that was added first to the next shard; shards take turns.

        Raises:
          KeyError: the cache is empty.
        """
        for _ in range(_SHARDS):
            self._last_shard = (self._last_shard + 1) % _SHARDS
            if shard := self._shards[self._last_shard]:
                self._count -= 1
                return shard.popitem(last=False)
        raise KeyError("the cache is empty")
