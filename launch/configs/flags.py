"""The flag `--config`: a preset by name, or a file, with overrides `--config.section.field=value`."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict, to_dict
from rec2pm_jax.errors import UserError, nearest

_FOLDER = Path(__file__).parent


def presets() -> dict[str, Path]:
    """Return the file of every preset of this folder, by name."""
    files = sorted(_FOLDER.glob("*.py"))
    return {f.stem: f for f in files if f.stem not in ("__init__", "flags")}


def find_preset(value: str) -> Path:
    """Return the file that a value of `--config` means.

    Args:
      value: a preset's name (`development`), its path in a checkout
        (`launch/configs/development.py`), or the path of any Python file.

    Raises:
      UserError: there is neither such a preset nor such a file.
    """
    path, known = Path(value), presets()
    if value in known:
        return known[value]
    if path.is_file():
        return path
    if path.suffix == ".py" and path.parent.parts[-2:] == ("launch", "configs"):
        if path.stem in known:
            return known[path.stem]
    raise UserError(
        f"--config={value}: there is no such preset or file.{nearest(path.stem, known)} "
        f"Presets: {', '.join(known)}."
    )


def define_config(
    flag_values: flags.FlagValues | None = None, sys_argv: list[str] | None = None
) -> None:
    """Define the required flag `--config` with its overrides.

    A preset is Python and defines `get_config() -> ml_collections.ConfigDict`, as the files of this
    folder do.

    Args:
      flag_values: where to define the flag; the process's flags by default.
      sys_argv: where to look for overrides; the command line by default.
    """
    flag_values = flags.FLAGS if flag_values is None else flag_values
    config_flags.DEFINE_config_file(
        "config",
        None,
        f"Preset, one of {', '.join(presets())}, or a Python file; --config.section.field=value "
        "overrides a field.",
        flag_values=flag_values,
        sys_argv=sys_argv,
    )
    flag_values["config"].parser = _PresetParser(sys_argv)
    # So that --help of the command shows it, although this module defines it.
    flag_values.register_key_flag_for_module(sys.argv[0], flag_values["config"])
    flags.mark_flag_as_required("config", flag_values=flag_values)


def get_config() -> Config:
    """Return the validated configuration of `--config` and its overrides, once flags are parsed.

    Raises:
      UserError: a field is unknown, of the wrong type or out of range.
    """
    values: Any = flags.FLAGS["config"].value
    return from_dict(values.to_dict())


def get_preset_file() -> Path:
    """Return the file of the preset that `--config` names, once flags are parsed."""
    return find_preset(config_flags.get_config_filename(flags.FLAGS["config"]))


class _PresetParser(flags.ArgumentParser):
    """Loads the preset and refuses overrides of unknown fields.

    `config_flags` itself would answer both mistakes with a traceback.
    """

    def __init__(self, argv: Sequence[str] | None):
        self._argv = argv

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        path = find_preset(argument)
        _check_overrides(sys.argv if self._argv is None else self._argv)
        module = runpy.run_path(str(path))
        if "get_config" not in module:
            raise UserError(f"--config={argument}: {path} defines no get_config().")
        return module["get_config"]().lock()

    def flag_type(self) -> str:
        return "preset"


def _check_overrides(argv: Sequence[str]) -> None:
    """Raise UserError for an override of an unknown field; name the nearest known one."""
    sections = to_dict(Config()).items()
    known = [f"{section}.{field}" for section, fields in sections for field in fields]
    for argument in argv:
        field = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if field and field[1] not in known:
            raise UserError(f"Unknown config field {field[1]}.{nearest(field[1], known)}")
