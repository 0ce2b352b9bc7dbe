"""Errors of the operating system that a user can put right, as one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from rec2pm_jax.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# A full or read-only disk, a missing permission, or a path that is no file.
CANNOT_WRITE = (
    *NO_ROOM,
    *_FORBIDDEN,
    errno.EFBIG,
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
# What libraries of record files and checkpoints say of a full disk.
_FULL = ("no space left", "disk quota exceeded", "resource_exhausted")


def check_path(path: Path | str) -> None:
    """Refuse a path that no file can have.

    Raises:
      UserError: a part of it is too long, it is too long as a whole, or it holds a NUL character.

    >>> check_path("not/there")
    >>> check_path("x" * 300)
    Traceback (most recent call last):
    rec2pm_jax.errors.UserError: The path xxxxxxxxxxxxxxxxxxxx.. is too long for a file system.
    """
    try:
        os.lstat(path)
    except ValueError:  # "embedded null byte"
        raise UserError(f"The path {str(path)!r} holds a NUL character; no file has one.") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"The path {str(path)[:20]}.. is too long for a file system.") from None


def write_error(path: Path | str, error: Exception, advice: str = "") -> UserError:
    """Return the error for a file or directory that cannot be written.

    Args:
      path: what was to be written.
      error: what the operating system or a library reported.
      advice: sentences that follow.

    >>> str(write_error("data/log", OSError(errno.ENOSPC, "No space left on device")))
    'Cannot write data/log: no room left on its disk.'
    """
    advice = f" {advice}" if advice else ""
    return UserError(f"Cannot write {path}: {_reason(error)}.{advice}")


def _reason(error: Exception) -> str:
    text = str(error)
    if getattr(error, "errno", None) in NO_ROOM or any(full in text.lower() for full in _FULL):
        return "no room left on its disk"
    lines = text.strip().splitlines() or [type(error).__name__]
    reason = (getattr(error, "strerror", None) or lines[0][:200]).rstrip(".")
    if getattr(error, "errno", None) in _FORBIDDEN:
        reason += "; make it writable, or choose another place"
    return reason
