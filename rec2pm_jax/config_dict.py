"""A configuration as plain values: nested dicts in both directions, and the hash that identifies a run.

Presets in `launch/configs/` return `ml_collections.ConfigDict`s (so that absl flags can override any
field); `from_dict` turns one into `Config` at once, and nothing below `launch/` sees a ConfigDict.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError, nearest


def to_dict(config: Config) -> dict[str, Any]:
    """Returns plain nested dicts (JSON-ready)."""
    return dataclasses.asdict(config)


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kwargs = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"Unknown config field {path}{name}.{nearest(name, fields)}")
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            kwargs[name] = _build(type(default), value, f"{path}{name}.")
        else:
            kwargs[name] = _cast(value, default, f"{path}{name}")
    return cls(**kwargs)


def _cast(value: Any, default: Any, path: str) -> Any:
    """Checks the type against the default's; an int is accepted where a float is expected."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UserError(
            f"config.{path} must be {type(default).__name__}, got {value!r} "
            f"({type(value).__name__})."
        )
    return value


def from_dict(values: Mapping[str, Any]) -> Config:
    """Builds and validates a `Config` from nested mappings; absent fields take their defaults.

    Raises:
      UserError: an unknown field (with the nearest known name), a wrong type or a value out of range.
    """
    return _build(Config, values, "")


def as_stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mapping of a run that was started earlier: fields that did not exist yet are neutral.

    Their defaults may be another recipe than the run's, see `config_hash`.
    """
    completed = dict(values)
    for section in dataclasses.fields(Config):
        if section.name in completed:
            fields = dataclasses.fields(section.default)
            neutral = {f.name: f.metadata["neutral"] for f in fields if "neutral" in f.metadata}
            completed[section.name] = neutral | completed[section.name]
    return completed


def config_hash(config: Config) -> str:
    """12 hex digits over data, model, method, loss and optim; the rest may change on resume.

    A field added later declares `metadata={"neutral": value}`, the value that means "as before it
    existed", and counts only when it differs: new options leave the hash of old runs alone.
    """
    identity = {
        field.name: _identity(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in ("train", "compute")
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _identity(section: Any) -> dict[str, Any]:
    values = {field: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {
        field.name: value
        for field, value in values.items()
        if "neutral" not in field.metadata or value != field.metadata["neutral"]
    }
