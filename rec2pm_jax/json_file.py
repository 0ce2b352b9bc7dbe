"""Files that are either complete or absent."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give the block a temporary path, and rename that file to `path` when the block ends.

    A device or a pipe, such as /dev/null or /dev/stdout, is given itself: it must not be replaced.

    Args:
      path: the file; missing parent directories are created.

    Raises:
      OSError: the file cannot be written; no temporary file is left behind.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the temporary file may not exist
            temporary.unlink()
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON under a temporary name, then rename the file.

    Args:
      path: the file; missing parent directories are created.
      value: anything JSON can represent.

    Raises:
      ValueError: `value` contains NaN or an infinity.
      OSError: the file cannot be written; no temporary file is left behind.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with replaced_file(path) as temporary:
        temporary.write_text(text)
