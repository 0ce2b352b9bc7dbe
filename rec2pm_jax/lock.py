"""Exclusive locks on a directory or a file, so that one process at a time writes there."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rec2pm_jax.errors import UserError
from rec2pm_jax.os_errors import write_error

LOCK_FILE = ".lock"

_log = logging.getLogger(__name__)


@contextlib.contextmanager
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
    with _lock(directory / LOCK_FILE, name or str(directory)):
        yield


@contextlib.contextmanager
def only_writer_of(path: Path) -> Iterator[None]:
    """Lock a file that is written again and again until the block ends.

    The lock is `.NAME.lock` beside it. A device or a pipe, such as /dev/null, has no lock.

    Args:
      path: the file; its directory is made if needed.

    Raises:
      UserError: as `alone_in`.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield
        return
    with _lock(path.parent / f".{path.name}.lock", str(path)):
        yield


def remove_lock(directory: Path) -> None:
    """Delete a locked directory that holds nothing but the lock; the holder calls this last."""
    if [entry.name for entry in directory.iterdir()] == [LOCK_FILE]:
        with contextlib.suppress(OSError):  # another process may have made a new lock file
            (directory / LOCK_FILE).unlink()
            directory.rmdir()


def _lock(path: Path, name: str) -> IO[str]:
    """Return the locked file `path`; errors call what it protects `name`."""
    directory = path.parent
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = open(path, "a")  # noqa: SIM115 (the caller closes it)
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
        except OSError as error:  # some network file systems have no locks
            _log.warning("Cannot lock %s (%s): let one process write there.", name, error.strerror)
        if _is_linked(lock, path):
            return lock
        # The last holder deleted the file after it was opened here. A lock on it protects nothing.
        lock.close()


def _can_be_made(directory: Path) -> bool:
    """Return whether no file or broken link is in the place of the directory."""
    return directory.is_dir() or not os.path.lexists(directory)


def _is_linked(lock: IO[str], path: Path) -> bool:
    """Return whether the open file still is the lock file."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
