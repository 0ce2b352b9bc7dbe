"""An exclusive lock on a directory, so that one process at a time works in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rec2pm_jax.errors import UserError
from rec2pm_jax.os_errors import write_error

LOCK_FILE = ".lock"


@contextmanager
def alone_in(directory: Path, name: str = "") -> Iterator[None]:
    """Lock a directory until the block ends.

    The lock is `directory`/.lock. The operating system releases it when the process ends, also after a
    kill. The holder may delete the directory, if it deletes the lock file after everything else.

    Args:
      directory: made if needed.
      name: what the error calls the directory; empty: its path.

    Raises:
      UserError: another process holds the lock, or it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name, alone_in(Path(name)):  # doctest: +ELLIPSIS
    ...     with alone_in(Path(name)):
    ...         pass
    Traceback (most recent call last):
      ...
    rec2pm_jax.errors.UserError: ... is in use by another process: wait for it or end it.
    """
    with _lock(directory, name or str(directory)):
        yield


def remove_lock(directory: Path) -> None:
    """Delete a locked directory that holds nothing but the lock; the holder calls this last."""
    if [entry.name for entry in directory.iterdir()] == [LOCK_FILE]:
        with contextlib.suppress(OSError):  # another process may have made a new lock file
            (directory / LOCK_FILE).unlink()
            directory.rmdir()


def _lock(directory: Path, name: str) -> IO[str]:
    """Return the locked file."""
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = open(directory / LOCK_FILE, "a")  # noqa: SIM115 (the caller closes it)
        except OSError as error:
            # The holder may delete the directory at any moment.
            if isinstance(error, FileExistsError | FileNotFoundError) and _can_be_made(directory):
                continue
            raise write_error(directory, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise UserError(
                f"{name} is in use by another process: wait for it or end it."
            ) from error
        if _is_linked(lock, directory):
            return lock
        # The last holder deleted the file after it was opened here. A lock on it protects nothing.
        lock.close()


def _can_be_made(directory: Path) -> bool:
    """Return whether no file or broken link is in the place of the directory."""
    return directory.is_dir() or not os.path.lexists(directory)


def _is_linked(lock: IO[str], directory: Path) -> bool:
    """Return whether the open file still is the lock file of the directory."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(directory / LOCK_FILE))
    except FileNotFoundError:
        return False
