"""What a store of users is, the store in memory, and what holds for all stores."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from rec2pm_jax.errors import UserError

MAX_USER_BYTES = 480  # of an id in UTF-8; LMDB's keys end at 511


def is_storable(user: str) -> bool:
    """Return whether an id is short enough for a store."""
    return len(user) * 4 <= MAX_USER_BYTES or len(user.encode()) <= MAX_USER_BYTES


NOTHING: Mapping[str, bytes] = MappingProxyType({})  # no states
MAINTENANCE = "maintenance"  # name of a writer that changes users of all workers
_DEFAULTS = {"seen": "none"}  # of settings that an older store does not name
_SETTINGS, _TIME_ORIGIN = "meaning", "time_origin"  # keys of metadata that an engine claims


class Store(Protocol):
    """Records and states by user id, and a few entries of metadata: settings and positions of input.

    `record.py` says what a record and a state are.

    Attributes:
      is_shared: whether several processes may write to it.
    """

    is_shared: bool

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        """Return the record of each user, None for unknown users."""
        ...

    def get_states(self, users: Sequence[str]) -> list[bytes | None]:
        """Return the state of each user, None for users without one."""
        ...

    def put(
        self,
        records: Mapping[str, bytes],
        metadata: Mapping[str, bytes],
        states: Mapping[str, bytes] = NOTHING,
    ) -> None:
        """Replace records, entries of metadata and states: all or none, also if the process dies.

        On return they are as durable as the store can make them.

        Raises:
          UserError: they cannot be written (full disk, another writer); nothing has changed.
        """
        ...

    def metadata(self) -> dict[str, bytes]:
        """Return all metadata."""
        ...

    def claim(self, name: str, value: bytes) -> bytes:
        """Set an entry of metadata that no process has set yet, and return what the store has."""
        ...

    def own_inputs(self, names: Sequence[str]) -> dict[str, bytes]:
        """Become the owner of parts of an input that workers divide, and return their positions.

        From then on the commits of the process that owned any of them before are refused.

        Args:
          names: of entries of metadata, such as kafka:TOPIC/0.
        """
        ...

    def release_inputs(self, names: Sequence[str]) -> None:
        """Own parts of an input no longer; commits do not write their positions."""
        ...

    def delete(self, users: Sequence[str]) -> int:
        """Delete users with their states, durably; return how many of them the store had."""
        ...

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Iterate over all users and their records, as of one moment if the store can."""
        ...

    def compact(self) -> None:
        """Return unused space to the system."""
        ...

    def size(self) -> int:
        """Return how many bytes the store takes."""
        ...

    def close(self) -> None:
        """Release the store; it can be opened again."""
        ...


class MemoryStore:
    """Records and states in dictionaries, lost when the process ends."""

    is_shared = False

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}
        self._states: dict[str, bytes] = {}
        self._metadata: dict[str, bytes] = {}

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        return [self._records.get(user) for user in users]

    def get_states(self, users: Sequence[str]) -> list[bytes | None]:
        return [self._states.get(user) for user in users]

    def put(
        self,
        records: Mapping[str, bytes],
        metadata: Mapping[str, bytes],
        states: Mapping[str, bytes] = NOTHING,
    ) -> None:
        self._records |= records
        self._states |= states
        self._metadata |= metadata

    def metadata(self) -> dict[str, bytes]:
        return dict(self._metadata)

    def claim(self, name: str, value: bytes) -> bytes:
        return self._metadata.setdefault(name, value)

    def own_inputs(self, names: Sequence[str]) -> dict[str, bytes]:
        return {name: self._metadata[name] for name in names if name in self._metadata}

    def release_inputs(self, names: Sequence[str]) -> None:
        pass

    def delete(self, users: Sequence[str]) -> int:
        for user in users:
            self._states.pop(user, None)
        return sum(self._records.pop(user, None) is not None for user in users)

    def items(self) -> Iterator[tuple[str, bytes]]:
        yield from list(self._records.items())

    def compact(self) -> None:
        pass

    def size(self) -> int:
        return sum(map(len, (*self._records.values(), *self._states.values())))

    def close(self) -> None:
        pass


def open_store(address: str, writer: str = "0/1") -> Store:
    """Open a store by its address, or create it.

    Args:
      address: a directory (LMDB), or redis://HOST:PORT/NUMBER.
      writer: name of this process among those that write to a server: a `Worker.name`, or
        `MAINTENANCE`.

    Raises:
      UserError: the store cannot be opened, its package is missing, or another process writes to it.
    """
    # Both packages are optional.
    if address.startswith(("redis://", "rediss://", "unix://")):
        from rec2pm_jax.stream.stores.redis_store import RedisStore

        return RedisStore(address, writer)
    from rec2pm_jax.stream.stores.lmdb_store import LmdbStore

    return LmdbStore(address)


def open_existing_store(address: str, writer: str) -> Store:
    """Do as `open_store`, but create nothing.

    Raises:
      UserError: as `open_store`, or the directory holds no store.
    """
    if "://" not in address and not os.path.isfile(os.path.join(address, "data.mdb")):
        raise UserError(f"--store={address}: there is no store in this directory.")
    return open_store(address, writer)


def read_settings(store: Store) -> dict[str, str | int]:
    """Return the settings that `claim_store` wrote.

    Raises:
      UserError: no engine has used the store.
    """
    found = store.metadata().get(_SETTINGS)
    if found is None:
        raise UserError(
            "--store holds no users: fill it by launch.stream or launch.rebuild_memory."
        )
    return json.loads(found)


def claim_store(store: Store, settings: Mapping[str, str | int]) -> None:
    """Write the settings of its states to a new store, or check those of an existing one.

    Args:
      settings: what all states of the store have in common, such as the model and the memory format.

    Raises:
      UserError: the store has other settings; the message names the first that differs.
    """
    found = store.claim(_SETTINGS, json.dumps(dict(settings), sort_keys=True).encode())
    stored = json.loads(found)
    for name, value in settings.items():
        kept = stored.get(name, _DEFAULTS.get(name))
        if kept != value:
            raise UserError(
                f"The store holds states of {name} {kept!r}, not {value!r}: states "
                "cannot be shared between models or settings. Use the model and flags that made it, "
                "or another --store and rebuild the memories there."
            )


def check_settings(
    store: Store, settings: Mapping[str, str | int]
) -> tuple[dict[str, str | int], int]:
    """Check a store that is only read.

    Args:
      settings: some of those that its states must have, see `claim_store`.

    Returns:
      (all settings of the store, what its times are relative to in seconds since 1970).

    Raises:
      UserError: the store has other settings, or holds no users.
    """
    metadata = store.metadata()
    if _SETTINGS not in metadata or _TIME_ORIGIN not in metadata:
        raise UserError("The store holds no users: run launch.stream or launch.rebuild_memory.")
    claim_store(store, settings)
    return json.loads(metadata[_SETTINGS]), int(metadata[_TIME_ORIGIN])


def claim_time_origin(store: Store, origin: int) -> int:
    """Return what the times in a store are relative to, in seconds since 1970.

    It is fixed when the store is made. That of a dataset moves when an older log is appended.

    Args:
      origin: of a new store.
    """
    return int(store.claim(_TIME_ORIGIN, str(origin).encode()))


def delete_matching(store: Store, matches: Callable[[str, bytes], bool]) -> int:
    """Delete the users for whom `matches(user, record)` is true; return how many."""
    return store.delete([user for user, record in store.items() if matches(user, record)])
