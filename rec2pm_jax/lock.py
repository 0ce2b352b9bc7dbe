"""A directory that one process at a time may work in."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rec2pm_jax.errors import UserError


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Holds `directory`/.lock, made if need be, until the block or the process ends, however it ends.

    Raises:
      UserError: another process holds it, or the lock cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / ".lock", "a")  # noqa: SIM115 (closed by the `with` below)
    except OSError as error:
        raise UserError(f"Cannot write {directory}: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{directory} is in use by another process: wait for it or end it."
            ) from error
        yield
