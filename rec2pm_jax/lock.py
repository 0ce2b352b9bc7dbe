"""An exclusive lock on a directory, so that one process at a time works in it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rec2pm_jax.errors import UserError
from rec2pm_jax.write_errors import write_error


@contextmanager
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
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / ".lock", "a")  # noqa: SIM115 (closed by the `with` below)
    except OSError as error:
        raise write_error(directory, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{directory} is in use by another process: wait for it or end it."
            ) from error
        yield
