"""`dataset.json`, the description of a prepared dataset."""

from __future__ import annotations

import json
from pathlib import Path

from rec2pm_jax.errors import UserError
from rec2pm_jax.os_errors import check_path

FORMAT_VERSION = 1
INFO_FILE = "dataset.json"
_FIELDS = {"content_hash": str, "users": int, "items": int, "events": int, "shards": int}
_FIELDS |= {"event_types": list, "has_times": bool, "time_origin": int, "ties": dict}
_FIELDS |= {"filters": dict, "dropped_rows": dict}
_APPENDED_FIELDS = {"base": dict, "deltas": int, "grown_from": list}  # of datasets with deltas


def read_info(path: str | Path) -> dict:
    """Read the description of a prepared dataset.

    Args:
      path: the directory of the dataset.

    Returns:
      The contents of `dataset.json`.

    Raises:
      UserError: the file is missing, damaged or of another version.
    """
    check_path(path)
    file = Path(path) / INFO_FILE
    if not file.is_file():
        raise UserError(
            f"{path} holds no prepared dataset (no dataset.json); make one with "
            "`python -m launch.prepare`."
        )
    try:
        info = json.loads(file.read_text())
        version = info["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); prepare the dataset again.") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{file} has format version {version}, this program reads {FORMAT_VERSION}; prepare "
            "the dataset again."
        )
    appended = _APPENDED_FIELDS if info.get("deltas") else {}
    for name, kind in (_FIELDS | appended).items():
        if not isinstance(info.get(name), kind):
            raise UserError(
                f'{file} is damaged ("{name}" is {info.get(name)!r}); prepare the dataset again.'
            )
    return info
