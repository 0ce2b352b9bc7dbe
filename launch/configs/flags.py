"""The flags `--config=PRESET` and `--config.section.field=value`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import flags

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import field_types
from rec2pm_jax.presets import find_preset, load_preset, presets


def define_config(flag_values: flags.FlagValues | None = None, required: bool = True) -> None:
    """Define the flag `--config`, and a flag for every field of the configuration.

    Args:
      flag_values: where to define them; the process's flags by default.
      required: whether `--config` must be given.
    """
    flag_values = flags.FLAGS if flag_values is None else flag_values
    flags.DEFINE(
        _PresetParser(),
        "config",
        None,
        f"Preset, one of {', '.join(presets())}, or a Python file; --config.section.field=value "
        "overrides a field.",
        flag_values=flag_values,
    )
    # So that --help of the command shows it, although this module defines it.
    flag_values.register_key_flag_for_module(sys.argv[0], flag_values["config"])
    if required:
        flags.mark_flag_as_required("config", flag_values=flag_values)
    for name, (kind, optional) in field_types().items():
        text = f"Overrides {name} of the preset."
        if kind is bool:
            flags.DEFINE_bool(f"config.{name}", None, text, flag_values=flag_values)
        else:
            parser = _FieldParser(kind, optional)
            flags.DEFINE(parser, f"config.{name}", None, text, flag_values=flag_values)


def get_config(flag_values: flags.FlagValues | None = None) -> Config:
    """Return the validated configuration of `--config` and its overrides, once flags are parsed.

    Args:
      flag_values: as in `define_config`.

    Raises:
      UserError: a field of the preset is unknown, of the wrong type or out of range.
    """
    values = flags.FLAGS if flag_values is None else flag_values
    preset: Any = values["config"].value
    return load_preset(preset, get_changes(values))


def get_changes(flag_values: flags.FlagValues | None = None) -> dict[str, Any]:
    """Return the values of the flags `--config.section.field` that were given, by field.

    Args:
      flag_values: as in `define_config`.
    """
    values = flags.FLAGS if flag_values is None else flag_values
    given = {name: values[f"config.{name}"] for name in field_types()}
    return {name: flag.value for name, flag in given.items() if flag.present}


def get_preset_file() -> Path:
    """Return the file of the preset that `--config` names, once flags are parsed."""
    preset: Any = flags.FLAGS["config"].value
    return find_preset(preset)


class _PresetParser(flags.ArgumentParser):
    """Accepts what `find_preset` finds."""

    def parse(self, argument: str) -> str:
        find_preset(argument)
        return argument


class _FieldParser(flags.ArgumentParser):
    """Parses the value of a field; "None" is a value of optional fields."""

    def __init__(self, kind: type, optional: bool):
        self._optional = optional
        self._parser = {
            int: flags.IntegerParser,
            float: flags.FloatParser,
            str: flags.ArgumentParser,
        }[kind]()

    def parse(self, argument: str) -> Any:
        if self._optional and argument == "None":
            return None
        return self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()
