"""Errors of writing files, as one line for users."""

from __future__ import annotations

import errno
from pathlib import Path

from rec2pm_jax.errors import UserError

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
