"""Errors of the operating system, as one line for users."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rec2pm_jax.errors import UserError

CLOSED_PIPE = 141  # exit code: 128 + SIGPIPE, as of a program that the signal ends
_FULL = ("no space left", "disk quota exceeded", "resource_exhausted")


def write_error(path: Path | str, error: OSError) -> UserError:
    """Return the error for a file or directory that cannot be written.

    Args:
      path: what was to be written.
      error: what the operating system, or a library of record files, reported.

    >>> str(write_error("data/log", OSError(errno.ENOSPC, "No space left on device")))
    'Cannot write data/log: no room left on its disk.'
    """
    text = str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or any(f in text.lower() for f in _FULL)
    reason = "no room left on its disk" if full else error.strerror or text
    return UserError(f"Cannot write {path}: {reason}.")


@contextmanager
def plain_os_errors() -> Iterator[None]:
    """Turn an error of the operating system into a `UserError`, and end quietly on a closed pipe.

    Raises:
      UserError: names the file.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has ended, as in `command | head -1`
        # Python flushes once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)
    except OSError as error:
        name = str(error.filename or "A file")
        name = name if len(name) <= 200 else f"{name[:200]}.."
        raise UserError(f"{name}: {error.strerror or error}.") from error
