"""Writes a configuration as a preset: a Python file with `get_config()`."""

from __future__ import annotations

from pathlib import Path

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.json_file import replaced_file

_TEXT = '''"""{docstring}"""

from __future__ import annotations

import ml_collections

from launch.configs.base import base_config


def get_config() -> ml_collections.ConfigDict:
    config = base_config()
{lines}    return config
'''


def write_preset(config: Config, path: Path, docstring: str) -> None:
    """Write a preset that `--config=FILE` loads.

    Args:
      config: the whole configuration; fields that differ from their defaults are written.
      path: the file; it is replaced as a whole.
      docstring: of the file, without quotes.
    """
    defaults = to_dict(Config())
    lines = "".join(
        f"    config.{section}.{field} = {value!r}\n"
        for section, fields in to_dict(config).items()
        for field, value in fields.items()
        if value != defaults[section][field]
    )
    with replaced_file(path) as temporary:
        temporary.write_text(_TEXT.format(docstring=docstring, lines=lines))
