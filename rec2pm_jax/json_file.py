"""JSON files that are either complete or absent."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):  # the temporary file may not exist
            temporary.unlink()
        raise
