"""Where records of users are kept: one small protocol, and what every store refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from rec2pm_jax.errors import UserError

MAX_USER_BYTES = 480  # of an id in UTF-8; LMDB's keys end at 511


class Store(Protocol):
    """Records by user id, and a few named marks (what the store holds, how far inputs were read)."""

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        """The record of each user, None for one never seen."""

    def put(self, records: Mapping[str, bytes], marks: Mapping[str, bytes]) -> None:
        """Keeps records and marks in place of the old ones: all or none of them, also if the process
        is killed. On return they are as durable as the store can make them.

        Raises:
          UserError: they cannot be kept (disk full, another writer); nothing has changed.
        """

    def marks(self) -> dict[str, bytes]:
        """All marks."""

    def delete(self, users: Sequence[str]) -> int:
        """Forgets users, durably; how many of them there were."""

    def items(self) -> Iterator[tuple[str, bytes]]:
        """All users and their records, of one moment where the store can."""

    def compact(self) -> None:
        """Gives unused space back."""

    def size(self) -> int:
        """Bytes that the store takes."""

    def close(self) -> None:
        """Lets go of the store; it can be opened again."""


class MemoryStore:
    """Records in a dictionary; they end with the process."""

    def __init__(self):
        self._records: dict[str, bytes] = {}
        self._marks: dict[str, bytes] = {}

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        return [self._records.get(user) for user in users]

    def put(self, records: Mapping[str, bytes], marks: Mapping[str, bytes]) -> None:
        self._records |= records
        self._marks |= marks

    def marks(self) -> dict[str, bytes]:
        return dict(self._marks)

    def delete(self, users: Sequence[str]) -> int:
        return sum(self._records.pop(user, None) is not None for user in users)

    def items(self) -> Iterator[tuple[str, bytes]]:
        yield from list(self._records.items())

    def compact(self) -> None:
        pass

    def size(self) -> int:
        return sum(map(len, self._records.values()))

    def close(self) -> None:
        pass


def open_store(address: str, worker: str = "0/1") -> Store:
    """A store by its address: a directory (LMDB), or redis://HOST:PORT/NUMBER.

    Args:
      worker: I/N, for a store that several workers write to.

    Raises:
      UserError: it cannot be opened, its package is missing, or another process writes to it.
    """
    if address.startswith(("redis://", "rediss://", "unix://")):
        from rec2pm_jax.stream.redis_store import RedisStore  # an optional package

        return RedisStore(address, worker)
    from rec2pm_jax.stream.lmdb_store import LmdbStore  # likewise

    return LmdbStore(address)


def claim(store: Store, meaning: Mapping[str, object]) -> None:
    """Marks an empty store as one of states with this meaning, or checks that it is one.

    Args:
      meaning: JSON values by name, such as the model and the format of its memory.

    Raises:
      UserError: the store holds states of another meaning; the message names what differs.
    """
    found = store.marks().get("meaning")
    if found is None:
        store.put({}, {"meaning": json.dumps(dict(meaning), sort_keys=True).encode()})
        return
    old = json.loads(found)
    for name, value in meaning.items():
        if old.get(name) != value:
            raise UserError(
                f"The store holds states of {name} {old.get(name)!r}, not {value!r}: states cannot "
                "be shared between models or settings. Use the model and flags that made it, or "
                "another --store and rebuild the memories there."
            )


def sweep(store: Store, gone: Callable[[str, bytes], bool]) -> int:
    """Deletes the users whose record is `gone`; returns how many."""
    return store.delete([user for user, record in store.items() if gone(user, record)])
