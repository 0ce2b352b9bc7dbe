"""Presets: complete configurations by name, found from any directory, with or without a checkout."""

from __future__ import annotations

import contextlib
import runpy
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.errors import UserError, nearest

_FOLDER = "launch.configs"  # a package of commands, above this one: found by name when it is needed


def presets() -> dict[str, Path]:
    """Return the file of every preset, by name.

    >>> "development" in presets()
    True
    """
    files = sorted(Path(str(resources.files(_FOLDER))).glob("*.py"))
    return {file.stem: file for file in files if not file.stem.endswith(("__init__", "flags"))}


def find_preset(value: str | Path) -> Path:
    """Return the file of a preset.

    Args:
      value: a preset's name (`development`), its path in a checkout
        (`launch/configs/development.py`), or the path of any Python file that defines
        `get_config() -> ml_collections.ConfigDict`.

    Raises:
      UserError: there is neither such a preset nor such a file.
    """
    path, known = Path(value), presets()
    if str(value) in known:
        return known[str(value)]
    with contextlib.suppress(OSError):  # such as a name that is too long
        if path.is_file():
            return path
    if path.suffix == ".py" and path.parent.parts[-2:] == ("launch", "configs"):
        if path.stem in known:
            return known[path.stem]
    raise UserError(
        f"{value}: there is no such preset or file.{nearest(path.stem, known)} "
        f"Presets: {', '.join(known)}."
    )


def load_preset(preset: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration of a preset, with some of its fields changed.

    Args:
      preset: a preset's name or file, as `find_preset` takes it.
      changes: values of fields by their dotted names, as the flags `--config.section.field=value`
        take them.

    Raises:
      UserError: an unknown preset or field, a wrong type, or a value out of range.

    Example:
      >>> config = load_preset("development", {"train.steps": 10, "method.slots": 8})
      >>> config.train.steps, config.method.slots
      (10, 8)
    """
    file = find_preset(preset)
    module = runpy.run_path(str(file))
    if "get_config" not in module:
        raise UserError(f"{file} defines no get_config().")
    values = module["get_config"]().to_dict()
    for name, value in (changes or {}).items():
        section, _, field = name.partition(".")
        if not isinstance(values.get(section), dict) or not field:
            known = [f"{section}.{field}" for section, fields in values.items() for field in fields]
            raise UserError(f"Unknown config field {name}.{nearest(name, known)}")
        values[section][field] = value
    return from_dict(values)
