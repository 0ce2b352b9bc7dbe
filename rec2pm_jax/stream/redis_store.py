"""A store that several workers share: Redis or Valkey.

A commit is one MULTI/EXEC of whole records with the worker's marks and the commit's name, so that
doing it twice is doing it once. A server that goes away is waited for; one that comes back without
what it had acknowledged is refused. How durable an acknowledged commit is, the server decides: with
`appendonly yes` and `appendfsync always` it survives a power cut, with `everysec` the last second may
be lost, upon which workers are told to start again and read it from their inputs once more.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from rec2pm_jax.errors import UserError

try:
    import redis
except ImportError as error:
    raise UserError(
        "A store at redis://.. needs the package redis: pip install -r requirements-stream.txt"
    ) from error

_T = TypeVar("_T")
_GONE = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
_USER = b"rec2pm:user:"
_SCAN = 1000
_WAIT_S = 0.2


class RedisStore:
    """See `store.Store`; `items` is not of one moment here, but every record is whole.

    Marks of inputs belong to a worker: each reads all lines and keeps the users that are its own.
    """

    def __init__(self, url: str, worker: str = "0/1", *, patience_s: float = 60.0):
        """Connects.

        Args:
          worker: I/N. Two processes with one number are told apart, and the older one is refused.
          patience_s: how long a server that went away is waited for.

        Raises:
          UserError: nobody answers there, or not as Redis does.
        """
        self._url, self._patience_s = url, patience_s
        try:
            self._server = redis.Redis.from_url(url, socket_timeout=10.0, retry=None)
        except ValueError as error:
            raise UserError(f"--store={url} is no address of a Redis server ({error}).") from error
        self._own = f"rec2pm:marks:{worker}".encode()
        self._shared = b"rec2pm:marks"
        self._newest_key = f"rec2pm:newest:{worker}".encode()
        self._process, self._count = secrets.token_hex(8), 0  # which of two processes is meant
        self._told(lambda: self._server.set(self._newest_key, self._name(0)))

    def _name(self, count: int) -> bytes:
        """Of this process's commit number `count`."""
        return f"{self._process}:{count}".encode()

    def _told(self, call: Callable[[], _T]) -> _T:
        """The call's result; again and again while the server is away."""
        end = time.monotonic() + self._patience_s
        while True:
            try:
                return call()
            except (*_GONE, redis.exceptions.BusyLoadingError) as error:
                if time.monotonic() > end:
                    raise UserError(
                        f"The store {self._url} has not answered for {self._patience_s:g} s "
                        f"({error}): start the server; what was committed is safe if it kept it, and "
                        "the rest is read again from the input."
                    ) from error
                time.sleep(_WAIT_S)
            except redis.exceptions.RedisError as error:
                raise UserError(f"The store {self._url} refuses ({error}).") from error

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        if not users:
            return []
        return self._told(lambda: self._server.mget([_USER + user.encode() for user in users]))

    def put(self, records: Mapping[str, bytes], marks: Mapping[str, bytes]) -> None:
        before, after = self._name(self._count), self._name(self._count + 1)

        def commit() -> None:
            with self._server.pipeline(transaction=True) as pipe:
                pipe.watch(self._newest_key)
                found = pipe.get(self._newest_key)
                if found == after:  # done, though the answer was lost
                    return
                if found != before:
                    raise UserError(
                        f"The store {self._url} does not hold this worker's last commit: another "
                        "process writes as the same --worker, or the server came back without "
                        "what it had acknowledged. Start again: the input is read from where the "
                        "store is."
                    )
                pipe.multi()
                if records:
                    pipe.mset({_USER + user.encode(): record for user, record in records.items()})
                for name, mark in marks.items():
                    pipe.hset(self._own if name.startswith("input:") else self._shared, name, mark)
                pipe.set(self._newest_key, after)
                try:
                    pipe.execute()
                except redis.exceptions.WatchError:  # the next look says who it was
                    raise redis.exceptions.ConnectionError("somebody else wrote") from None

        self._told(commit)
        self._count += 1

    def marks(self) -> dict[str, bytes]:
        found = {
            **self._told(lambda: self._server.hgetall(self._shared)),
            **self._told(lambda: self._server.hgetall(self._own)),
        }
        return {name.decode(): mark for name, mark in found.items()}

    def delete(self, users: Sequence[str]) -> int:
        if not users:
            return 0
        return self._told(lambda: self._server.delete(*(_USER + user.encode() for user in users)))

    def items(self) -> Iterator[tuple[str, bytes]]:
        cursor, seen = 0, set()
        while True:
            cursor, keys = self._told(
                lambda at=cursor: self._server.scan(at, match=_USER + b"*", count=_SCAN)
            )
            fresh = [key for key in keys if key not in seen]  # a scan may say a key twice
            seen.update(fresh)
            users = [key[len(_USER) :].decode() for key in fresh]
            for user, record in zip(users, self.get(users), strict=True):
                if record is not None:
                    yield user, record
            if not cursor:
                return

    def compact(self) -> None:
        """Rewrites the append-only file, where there is one."""
        self._told(self._server.bgrewriteaof)

    def size(self) -> int:
        return int(self._told(lambda: self._server.info("memory"))["used_memory"])

    def close(self) -> None:
        self._server.close()
