"""A store that several workers share: Redis or Valkey.

A commit is one MULTI/EXEC transaction of records, states, the worker's metadata and the commit's name.
The name makes a repeated commit harmless, and detects a second process with the same worker number.

Parts of an input that move between workers, such as partitions of a topic, have an owner key each. A
worker that gets a part writes its name there and reads the part's position, in one transaction. Every
commit watches the owner keys of its worker. So a worker that lost a part commits nothing more.

Workers write beside each other, since each has its own users. A maintenance process (tidying, a
rebuild) writes to all users, so it excludes every other process: its writes are refused if a process
has connected after it, and after them the commits of all processes from before are refused.

A server that goes away is waited for. One that comes back without an acknowledged commit is refused.
The server's settings decide how durable an acknowledged commit is: with `appendonly yes` and
`appendfsync always` it survives a power cut. With `everysec` the last second may be lost; workers then
stop, and a restart reads that second from their inputs again.
"""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.stores.base import MAINTENANCE, NOTHING

try:
    import redis
except ImportError as error:
    raise UserError(
        "A store at redis://.. needs the package redis: pip install 'rec2pm_jax[stream]'"
    ) from error

_T = TypeVar("_T")
# A lost connection is a WatchError too, while keys are watched. The next attempt finds out who wrote.
_PASSING = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.WatchError,
)
_USER_PREFIX, _STATE_PREFIX = b"rec2pm:user:", b"rec2pm:state:"
_SHARED_METADATA = b"rec2pm:marks"
_STARTS = b"rec2pm:starts"  # how many processes have connected
_MAINTAINER = b"rec2pm:maintainer"  # the last maintenance process that wrote
_SCAN_COUNT = 1000
_RETRY_S = 0.2
_SOCKET_TIMEOUT_S = 10.0


class RedisStore:
    """A store on a server, see `stores.base.Store`.

    `items` iterates while others write, so records are whole but not all of one moment. Positions of
    files belong to one worker each, as every worker reads all lines. Those of `own_inputs` are shared.
    """

    is_shared = True

    def __init__(self, url: str, writer: str = "0/1", *, patience_s: float = 60.0):
        """Connect to a server.

        Args:
          url: redis://HOST:PORT/NUMBER, rediss:// or unix://.
          writer: name of this process among those that write: a `Worker.name`, or `MAINTENANCE`. Of
            two processes with one name the older one is refused.
          patience_s: seconds to wait for a server that went away.

        Raises:
          UserError: the address is wrong, or no such server answers.
        """
        self._url, self._patience_s = url, patience_s
        try:
            self._server: Any = redis.Redis.from_url(
                url, socket_timeout=_SOCKET_TIMEOUT_S, retry=None
            )
        except ValueError as error:
            raise UserError(f"--store={url} is no address of a Redis server ({error}).") from error
        self._own_metadata = f"rec2pm:marks:{writer}".encode()
        self._last_commit_key = f"rec2pm:newest:{writer}".encode()
        self._process, self._count = secrets.token_hex(8), 0
        self._committing = threading.Lock()  # commits come from several threads, and are numbered
        self._maintains = writer == MAINTENANCE
        self._owned: tuple[str, ...] = ()  # replaced at once, as a thread commits
        self._retry(lambda: self._server.set(self._last_commit_key, self._commit_name(0)))
        self._starts = self._retry(lambda: self._server.incr(_STARTS))
        self._maintainer: bytes | None = self._retry(lambda: self._server.get(_MAINTAINER))

    def _commit_name(self, count: int) -> bytes:
        return f"{self._process}:{count}".encode()

    def _retry(self, call: Callable[[], _T]) -> _T:
        """Return the call's result; repeat it while the server is away or what it watches changes."""
        end = time.monotonic() + self._patience_s
        while True:
            try:
                return call()
            except _PASSING as error:
                if time.monotonic() > end:
                    raise UserError(
                        f"The store {self._url} has not answered for {self._patience_s:g} s "
                        f"({error}): start the server; what was committed is safe if it kept it, and "
                        "the rest is read again from the input."
                    ) from error
                time.sleep(_RETRY_S)
            except redis.exceptions.RedisError as error:
                raise UserError(f"The store {self._url} refuses ({error}).") from error

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        return self._read(_key, users)

    def get_states(self, users: Sequence[str]) -> list[bytes | None]:
        return self._read(_state_key, users)

    def _read(self, key: Callable[[str], bytes], users: Sequence[str]) -> list[bytes | None]:
        if not users:
            return []
        return self._retry(lambda: self._server.mget([key(user) for user in users]))

    def put(
        self,
        records: Mapping[str, bytes],
        metadata: Mapping[str, bytes],
        states: Mapping[str, bytes] = NOTHING,
    ) -> None:
        values = {_key(user): record for user, record in records.items()}
        values |= {_state_key(user): state for user, state in states.items()}

        def write(pipe: Any) -> None:
            if values:
                pipe.mset(values)
            for name, value in metadata.items():
                pipe.hset(self._metadata_key(name), name, value)

        self._commit(write)

    def _commit(self, write: Callable[[Any], None]) -> None:
        """Commit what `write(pipeline)` queues, unless another process has written meanwhile.

        Raises:
          UserError: names the process, and says what to do.
        """
        with self._committing:
            self._commit_alone(write)

    def _commit_alone(self, write: Callable[[Any], None]) -> None:
        before, after = self._commit_name(self._count), self._commit_name(self._count + 1)
        others = [_STARTS] if self._maintains else []
        owned = self._owned

        def commit() -> None:
            with self._server.pipeline(transaction=True) as pipe:
                pipe.watch(self._last_commit_key, _MAINTAINER, *others, *map(_owner_key, owned))
                found = pipe.get(self._last_commit_key)
                if found == after:  # the commit succeeded, but its answer was lost
                    return
                if found != before:
                    raise UserError(
                        f"The store {self._url} does not hold this worker's last commit: another "
                        "process writes as the same --worker, or the server came back without "
                        "what it had acknowledged. Start again: the input is read from where the "
                        "store is."
                    )
                self._check_alone(pipe)
                self._check_owned(pipe, owned)
                pipe.multi()
                write(pipe)
                pipe.set(self._last_commit_key, after)
                if self._maintains:
                    pipe.set(_MAINTAINER, self._process)
                pipe.execute()

        self._retry(commit)
        self._count += 1
        if self._maintains:
            self._maintainer = self._process.encode()

    def _check_alone(self, pipe: Any) -> None:
        """Raise UserError if another process maintains the store, or joins this one that does."""
        if pipe.get(_MAINTAINER) != self._maintainer:
            raise UserError(
                f"launch.tidy_store or launch.rebuild_memory has written to the store {self._url} "
                "meanwhile: start again once it has ended; the input is read from where the store is."
            )
        if self._maintains and int(pipe.get(_STARTS) or 0) != self._starts:
            raise UserError(
                f"Another process has connected to the store {self._url} meanwhile: end it, and start "
                "this command again."
            )

    def _check_owned(self, pipe: Any, names: tuple[str, ...]) -> None:
        """Raise UserError if another process has become the owner of parts of the input."""
        owners = pipe.mget([_owner_key(name) for name in names]) if names else []
        lost = [
            name
            for name, owner in zip(names, owners, strict=True)
            if owner != self._process.encode()
        ]
        if lost:
            raise UserError(
                f"Another worker has taken {', '.join(lost)} in the store {self._url}, since this one "
                "was away too long or both read the same partitions: what this one read since its last "
                "commit is left to the other. Start again: the input is read from where the store is."
            )

    def own_inputs(self, names: Sequence[str]) -> dict[str, bytes]:
        if not names:
            return {}
        owners = {_owner_key(name): self._process for name in names}

        def own() -> list[bytes | None]:
            with self._server.pipeline(transaction=True) as pipe:
                pipe.mset(owners)
                pipe.hmget(_SHARED_METADATA, list(names))
                return pipe.execute()[1]

        found = self._retry(own)
        self._owned = tuple(dict.fromkeys((*self._owned, *names)))
        return {name: value for name, value in zip(names, found, strict=True) if value is not None}

    def release_inputs(self, names: Sequence[str]) -> None:
        self._owned = tuple(name for name in self._owned if name not in names)

    def _metadata_key(self, name: str) -> bytes:
        return self._own_metadata if name.startswith("input:") else _SHARED_METADATA

    def metadata(self) -> dict[str, bytes]:
        found = {
            **self._retry(lambda: self._server.hgetall(_SHARED_METADATA)),
            **self._retry(lambda: self._server.hgetall(self._own_metadata)),
        }
        return {name.decode(): value for name, value in found.items()}

    def claim(self, name: str, value: bytes) -> bytes:
        key = self._metadata_key(name)
        self._retry(lambda: self._server.hsetnx(key, name, value))
        return self._retry(lambda: self._server.hget(key, name))

    def delete(self, users: Sequence[str]) -> int:
        if not users:
            return 0
        keys = [key(user) for user in users for key in (_key, _state_key)]
        found = sum(record is not None for record in self.get(users))
        self._commit(lambda pipe: pipe.delete(*keys))
        return found

    def items(self) -> Iterator[tuple[str, bytes]]:
        cursor, seen = 0, set[bytes]()
        while True:
            scan = functools.partial(
                self._server.scan, cursor, match=_USER_PREFIX + b"*", count=_SCAN_COUNT
            )
            cursor, keys = self._retry(scan)
            new = [key for key in keys if key not in seen]  # a scan may return a key twice
            seen.update(new)
            users = [key[len(_USER_PREFIX) :].decode() for key in new]
            for user, record in zip(users, self.get(users), strict=True):
                if record is not None:
                    yield user, record
            if not cursor:
                return

    def compact(self) -> None:
        """Have the server rewrite its append-only file, if it has one."""
        self._retry(self._server.bgrewriteaof)

    def size(self) -> int:
        """Return the bytes of memory that the server uses."""
        return int(self._retry(lambda: self._server.info("memory"))["used_memory"])

    def close(self) -> None:
        self._server.close()


def _owner_key(name: str) -> bytes:
    return f"rec2pm:owner:{name}".encode()


def _key(user: str) -> bytes:
    return _USER_PREFIX + user.encode()


def _state_key(user: str) -> bytes:
    return _STATE_PREFIX + user.encode()
