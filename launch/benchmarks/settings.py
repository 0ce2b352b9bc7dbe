"""Models and sizes of rows: B = 8, L = 1000, D = 64, 20,000 items, 128 negatives per position.

Models read times, as they do by default on data with times.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.typing import Batch

ITEMS = 20_000
FEW_ITEMS = 2_243  # Complete Journey, product types
METHODS: dict[str, dict[str, Any]] = {  # display name -> fields of the method
    "full": {"name": "full"},
    "recent": {"name": "recent"},
    "rec2pm_o": {"name": "rec2pm", "memory": "overwrite"},
    "rec2pm_a": {"name": "rec2pm", "memory": "append"},
    "tok_serial_o": {"name": "tok_serial", "memory": "overwrite"},
    "kv_mask_o": {"name": "kv_mask", "memory": "overwrite"},
}
SASREC = {"backbone": "sasrec", "layers": 4, "heads": 4, "dim": 64}
HSTU = {"backbone": "hstu", "layers": 16, "heads": 8, "dim": 64}
DEVELOPMENT = {"backbone": "sasrec", "layers": 2, "heads": 2, "dim": 64}
# The setting of `launch.reproduce`: a window of 16 short segments, items few enough for all to count.
MANY_SEGMENTS = {
    "data": {"segment": 25, "segments": 16},
    "loss": {"negatives": None},
    "train": {"batch_size": 16},
}
# For --smoke: a suite takes seconds.
SMOKE_ITEMS = 200
SMOKE_SASREC = {"backbone": "sasrec", "layers": 2, "heads": 2, "dim": 8}
SMOKE_HSTU = {"backbone": "hstu", "layers": 2, "heads": 2, "dim": 8}


def make_config(
    method: str, model: dict[str, Any], *, smoke: bool = False, **changes: dict[str, Any]
) -> Config:
    """Return the configuration of a row.

    Args:
      method: a key of `METHODS`.
      model: fields of the section `model`.
      smoke: whether sizes are tiny.
      changes: further fields by section, as in `data={"segment": 10}`.
    """
    values: dict[str, dict[str, Any]] = {
        "data": {"segment": 200, "segments": 5},
        "model": {"use_times": True} | model,
        "method": METHODS[method] | {"slots": 4},
        "loss": {"negatives": 128, "sharing": "per_position"},
        "train": {"batch_size": 8},
    }
    if smoke:
        values["data"] = {"segment": 4, "segments": 3}
        values["loss"]["negatives"] = 4
        values["train"]["batch_size"] = 2
    for section, fields in changes.items():
        values[section] = values.get(section, {}) | fields
    return from_dict(values)


def random_batch(config: Config, items: int, seed: int = 0) -> Batch:
    """Return a training batch without padding, see `Method.loss`; items are drawn uniformly."""
    rng = np.random.default_rng(seed)
    rows, window = config.train.batch_size, config.data.window
    return {
        "ids": rng.integers(1, items + 1, (rows, window + 1), dtype=np.int32),
        "times": np.tile(np.arange(window + 1, dtype=np.int32) * 60, (rows, 1)),
        "index": np.arange(rows, dtype=np.int32),
    }
