"""Every field with its default; other presets start from `base_config()` and change some.

Command: any; `--config=base` with overrides is a run of the defaults.
Hardware, time: as its overrides need.
Metrics: none.
"""

from __future__ import annotations

import ml_collections
from ml_collections.config_dict import FieldReference

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import field_types, to_dict


def base_config() -> ml_collections.ConfigDict:
    """Return the defaults of `rec2pm_jax.config.Config` as a ConfigDict, which flags can override."""
    values = to_dict(Config())
    for name, (kind, optional) in field_types().items():
        section, field = name.split(".")
        if optional:  # flags need the type of a field whose value may be None
            values[section][field] = FieldReference(values[section][field], field_type=kind)
    return ml_collections.ConfigDict(values)


def get_config() -> ml_collections.ConfigDict:
    return base_config()
