"""A directory with a manifest that appears complete or not at all.

It is written under a temporary name and renamed, so the final name always refers to a complete one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rec2pm_jax.errors import UserError
from rec2pm_jax.os_errors import check_path, write_error


@contextlib.contextmanager
def new_directory(output: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """Yield a temporary directory, which gets its manifest and final name when the block ends.

    Args:
      output: the final name.
      manifest: what `manifest.json` will hold. The block may change it; `files`, with the checksums
        and sizes of all other files, is added after the block.

    Raises:
      UserError: `output` exists or cannot be written. Nothing is left behind then.

    Example:
      >>> manifest = {"rows": 2}
      >>> with new_directory(Path("out"), manifest) as temporary:
      ...     _ = (temporary / "rows.txt").write_text("ab")
      >>> sorted(path.name for path in Path("out").iterdir()), manifest["files"]["rows.txt"]["bytes"]
      (['manifest.json', 'rows.txt'], 2)
    """
    check_not_existing(output)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        manifest["files"] = {path.name: _checksum(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        for path in (*temporary.iterdir(), temporary):  # before the rename
            _sync(path)
        os.rename(temporary, output)
    except OSError as error:
        raise write_error(output, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_not_existing(output: str | Path) -> Path:
    """Return the path `output`, and refuse one that exists: an export must not change while it serves.

    Raises:
      UserError: it exists, or no file can have that path.
    """
    check_path(output)
    if os.path.lexists(output):
        raise UserError(
            f"--output={output} is there already: choose another name, or move it away once nothing "
            "serves from it."
        )
    return Path(output)


def _checksum(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _sync(path: Path) -> None:
    """Write a file or directory through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
