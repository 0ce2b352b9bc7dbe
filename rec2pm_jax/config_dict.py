"""A configuration as plain nested dictionaries, in both directions.

Presets in `launch/configs/` return `ml_collections.ConfigDict`s, so that absl flags can override any
field. `from_dict` turns one into a `Config` at once; the library never sees a ConfigDict.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError, nearest


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Return nested dictionaries of plain values, ready for JSON.

    >>> to_dict(Config())["data"]["segment"]
    25
    """
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> Config:
    """Build and validate a `Config`; absent fields take their defaults.

    >>> from_dict({"method": {"name": "full"}}).method.name
    'full'

    Args:
      values: nested mappings, section -> field -> value.

    Raises:
      UserError: a field is unknown (the message has the nearest known name), has the wrong type, or
        is out of range.
    """
    return _build(Config, values, "")


def field_types() -> dict[str, tuple[type, bool]]:
    """Return the type of each field, and whether it may be None, by "section.field".

    >>> field_types()["optim.clip_norm"]
    (<class 'float'>, True)
    """
    return {
        f"{section.name}.{name}": described
        for section in dataclasses.fields(Config)
        for name, described in _types(type(section.default)).items()
    }


def _types(cls: type) -> dict[str, tuple[type, bool]]:
    described = {}
    for name, annotation in typing.get_type_hints(cls).items():
        options = [t for t in typing.get_args(annotation) if t is not type(None)]
        described[name] = (options[0], True) if options else (annotation, False)
    return described


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    types = _types(cls)
    kwargs = {}
    for name, value in values.items():
        if name not in types:
            raise UserError(f"Unknown config field {path}{name}.{nearest(name, types)}")
        wanted, optional = types[name]
        if dataclasses.is_dataclass(wanted):
            kwargs[name] = _build(wanted, value, f"{path}{name}.")
        elif value is None and optional:
            kwargs[name] = None
        else:
            kwargs[name] = _checked(value, wanted, f"{path}{name}")
    return cls(**kwargs)


def _checked(value: Any, wanted: type, path: str) -> Any:
    """Return the value if it has the wanted type; an int is accepted as a float."""
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise UserError(
            f"config.{path} must be {wanted.__name__}, got {value!r} ({type(value).__name__})."
        )
    return value
