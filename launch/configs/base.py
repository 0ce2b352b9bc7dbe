"""Every field with its default; other presets start from `base_config()` and change some.

Command: any; `--config=base` with overrides is a run of the defaults.
Hardware, time: as its overrides need.
Metrics: none.
"""

from __future__ import annotations

import ml_collections

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict


def base_config() -> ml_collections.ConfigDict:
    """Return the defaults of `rec2pm_jax.config.Config` as a ConfigDict, which flags can override."""
    return ml_collections.ConfigDict(to_dict(Config()))


def get_config() -> ml_collections.ConfigDict:
    return base_config()
