"""Exclusive locks on a directory or a file, so that one process at a time writes there."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from rec2pm_jax.errors import UserError
from rec2pm_jax.write_errors import write_error

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Lock a directory until the block ends.

    The lock is `directory`/.lock. The operating system releases it when the process ends, also after a
    kill.

    Args:
      directory: made if needed.

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
    with _locked(directory, directory / ".lock"):
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
    is_device = path.exists() and not (path.is_file() or path.is_dir())
    lock = _locked(path, path.parent / f".{path.name}.lock")
    with contextlib.nullcontext() if is_device else lock:
        yield


@contextlib.contextmanager
def _locked(what: Path, path: Path) -> Iterator[None]:
    """Lock `what` by the lock file `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a")  # noqa: SIM115 (closed by the `with` below)
    except OSError as error:
        raise write_error(what, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{what} is in use by another process: wait for it or end it."
            ) from error
        except OSError as error:  # some network file systems have no locks
            _log.warning("Cannot lock %s (%s): let one process write there.", what, error.strerror)
        yield
