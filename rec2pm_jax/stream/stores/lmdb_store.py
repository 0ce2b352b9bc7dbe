"""The embedded store: LMDB, a memory-mapped B-tree that survives crashes.

A commit writes changed pages to free places and then one page that refers to them, with an fsync
before and after. A process killed or a machine without power at any instant leaves the last commit.
One process writes, others may read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rec2pm_jax.errors import UserError
from rec2pm_jax.lock import alone_in
from rec2pm_jax.stream.stores.base import NOTHING

try:
    import lmdb
except ImportError as error:
    raise UserError(
        "The embedded store needs the package lmdb: pip install 'rec2pm_jax[stream]'"
    ) from error

_DATA_FILE = "data.mdb"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PROBE_BYTES = 1 << 20
_MAP_BYTES = 1 << 40  # address space, not disk
_RECORDS_PER_CALL = 16  # LMDB holds the interpreter for 0.1 ms then, and other threads wait


class LmdbStore:
    """A store in a directory, see `stores.base.Store`.

    Attributes:
      path: the directory.
    """

    is_shared = False

    def __init__(self, path: str | Path, *, map_bytes: int = _MAP_BYTES):
        """Open a store, or create it.

        Args:
          map_bytes: the largest size of the store.

        Raises:
          UserError: it cannot be read or written, is damaged, or another process writes to it.
        """
        self.path = Path(path)
        self._map_bytes = map_bytes
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(alone_in(self.path))
        # A store that nothing was written to is removed again, so that a command that fails at its
        # start leaves nothing that looks like a store.
        self._is_blank = not (self.path / _DATA_FILE).exists()
        try:
            self._open()
        except UserError:
            self._close_files()
            raise

    def _open(self) -> None:
        with self._explain_errors("opened"):
            self._env = lmdb.open(
                str(self.path), map_size=self._map_bytes, max_dbs=3, readahead=False
            )
            self._users = self._env.open_db(b"users")
            self._states = self._env.open_db(b"states")
            self._metadata = self._env.open_db(b"marks")

    @contextlib.contextmanager
    def _explain_errors(self, action: str) -> Iterator[None]:
        """Turn errors of LMDB into UserErrors that say what to do."""
        try:
            yield
        except (lmdb.Error, OSError) as error:
            reason = str(error)
            full = isinstance(error, lmdb.MapFullError) or self._disk_is_full(reason)
            advice = (
                "there is no room left on its disk. Free some and start again: what was committed is "
                "safe, and the rest is read again from the input"
                if full
                else "if it is damaged, restore it from a backup"
            )
            raise UserError(
                f"Store {self.path} cannot be {action} ({reason}): {advice}."
            ) from error

    def _disk_is_full(self, reason: str) -> bool:
        """Return whether an error of LMDB means a full disk or an exhausted quota."""
        if any(os.strerror(code) in reason for code in _FULL):
            return True
        if os.strerror(errno.EIO) not in reason:
            return False
        try:  # LMDB reports a write that was cut short as an input/output error
            with tempfile.TemporaryFile(dir=self.path, buffering=0) as file:
                file.write(bytes(_PROBE_BYTES))
                return file.tell() < _PROBE_BYTES
        except OSError as error:
            return error.errno in _FULL

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        return self._read(self._users, users)

    def get_states(self, users: Sequence[str]) -> list[bytes | None]:
        return self._read(self._states, users)

    def _read(self, table: Any, users: Sequence[str]) -> list[bytes | None]:
        if not users:
            return []
        with self._explain_errors("read"), self._env.begin(db=table) as transaction:
            return [transaction.get(user.encode()) for user in users]

    def put(
        self,
        records: Mapping[str, bytes],
        metadata: Mapping[str, bytes],
        states: Mapping[str, bytes] = NOTHING,
    ) -> None:
        self._is_blank = False
        with self._explain_errors("written"), self._env.begin(write=True) as transaction:
            for table, values in ((self._users, records), (self._states, states)):
                # In the order of keys a commit takes half as long as in any other.
                rows = ((user.encode(), values[user]) for user in sorted(values))
                cursor = transaction.cursor(table)
                while part := list(islice(rows, _RECORDS_PER_CALL)):
                    cursor.putmulti(part)
            for name, value in metadata.items():
                transaction.put(name.encode(), value, db=self._metadata)

    def metadata(self) -> dict[str, bytes]:
        with self._explain_errors("read"), self._env.begin(db=self._metadata) as transaction:
            return {name.decode(): value for name, value in transaction.cursor()}

    def claim(self, name: str, value: bytes) -> bytes:
        found = self.metadata().get(name)
        if found is None:
            self.put({}, {name: value})
        return value if found is None else found

    def own_inputs(self, names: Sequence[str]) -> dict[str, bytes]:
        found = self.metadata()
        return {name: found[name] for name in names if name in found}

    def release_inputs(self, names: Sequence[str]) -> None:
        pass

    def delete(self, users: Sequence[str]) -> int:
        keys = [user.encode() for user in users if user]  # LMDB has no keys of no bytes
        with self._explain_errors("written"), self._env.begin(write=True) as transaction:
            for key in keys:
                transaction.delete(key, db=self._states)
            return sum(transaction.delete(key, db=self._users) for key in keys)

    def items(self) -> Iterator[tuple[str, bytes]]:
        with self._explain_errors("read"), self._env.begin(db=self._users) as transaction:
            for user, record in transaction.cursor():
                yield user.decode(), record

    def compact(self) -> None:
        """Copy the store without its holes and rename the copy, which takes room for both."""
        copy = self.path / "compact"
        with self._explain_errors("compacted"):
            copy.mkdir(exist_ok=True)
            (copy / _DATA_FILE).unlink(missing_ok=True)  # of a compaction that was stopped
            self._env.copy(str(copy), compact=True)
            with open(copy / _DATA_FILE, "rb+") as file:
                os.fsync(file.fileno())
            self._env.close()
            os.replace(copy / _DATA_FILE, self.path / _DATA_FILE)
            copy.rmdir()
            directory = os.open(self.path, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        self._open()

    def size(self) -> int:
        """Return the bytes on disk, which are fewer than the length of a file with holes."""
        return (self.path / _DATA_FILE).stat().st_blocks * 512

    def close(self) -> None:
        self._env.close()
        self._close_files()

    def _close_files(self) -> None:
        """Remove a blank store, and release the lock."""
        if self._is_blank:
            with contextlib.suppress(OSError):  # the directory may hold other files
                # The lock file goes last: whoever gets the lock then sees an empty directory.
                for name in (_DATA_FILE, "lock.mdb", ".lock"):
                    (self.path / name).unlink(missing_ok=True)
                self.path.rmdir()
        self._lock.close()
