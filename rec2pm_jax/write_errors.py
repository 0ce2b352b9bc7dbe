"""One-line errors for files that cannot be written."""

from __future__ import annotations

import errno
import os

from rec2pm_jax.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# What a user can put right: a full or read-only disk, a missing permission, a path that is no file.
CANNOT_WRITE = (
    *NO_ROOM,
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)


def write_error(path: str | os.PathLike, error: Exception, advice: str = "") -> UserError:
    """Return the error for a file or directory that cannot be written.

    Args:
      path: what was written.
      error: an `OSError`, or the error of a library whose text is that of the system.
      advice: sentences that follow.

    >>> str(write_error("runs/a", OSError(errno.ENOSPC, "No space left on device")))
    'No room left on runs/a: free some space.'
    >>> str(write_error("runs/a", OSError(errno.EACCES, "Permission denied")))
    'Cannot write runs/a (Permission denied): make it writable, or choose another place.'
    """
    advice = f" {advice}" if advice else ""
    if _is_no_room(error):
        return UserError(f"No room left on {path}: free some space.{advice}")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = getattr(error, "strerror", None) or lines[0][:200]
    return UserError(
        f"Cannot write {path} ({reason}): make it writable, or choose another place.{advice}"
    )


def _is_no_room(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return True
    return any(os.strerror(number) in str(error) for number in NO_ROOM)
