"""Every field with its default; other presets start from `base_config()` and change some."""

from __future__ import annotations

import ml_collections

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict


def base_config() -> ml_collections.ConfigDict:
    """The defaults of `rec2pm_jax.config.Config` as a ConfigDict, which absl flags can override."""
    return ml_collections.ConfigDict(to_dict(Config()))


def get_config() -> ml_collections.ConfigDict:
    return base_config()
