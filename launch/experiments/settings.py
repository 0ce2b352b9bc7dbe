"""The methods that suites compare, and the settings that a search found for each."""

from __future__ import annotations

import dataclasses
from typing import Any

from rec2pm_jax.config import Config

# Entries of the exact memory. Beside 272 bytes of int8 memory they make states of 1,024 and 528 bytes.
ENTRIES, FEW_ENTRIES = 94, 32
# Every method: its row in the tables, and the fields of `config.method` that make it.
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "recent": {"name": "recent", "exact_entries": 0},
    "recent_exact": {"name": "recent", "exact_entries": ENTRIES},
    "rec2pm_o": {"name": "rec2pm", "memory": "overwrite", "exact_entries": ENTRIES},
    "tok_serial_o": {"name": "tok_serial", "memory": "overwrite", "exact_entries": ENTRIES},
    "kv_mask_o": {"name": "kv_mask", "memory": "overwrite", "exact_entries": ENTRIES},
    "linear_recurrence": {"name": "linear_recurrence", "exact_entries": ENTRIES},
    "rec2pm_528": {"name": "rec2pm", "memory": "overwrite", "exact_entries": FEW_ENTRIES},
    "rec2pm_a": {"name": "rec2pm", "memory": "append", "exact_entries": ENTRIES},
    "tok_serial_a": {"name": "tok_serial", "memory": "append", "exact_entries": ENTRIES},
    "kv_mask_a": {"name": "kv_mask", "memory": "append", "exact_entries": ENTRIES},
}
MEMORIES = tuple(name for name in METHODS if METHODS[name]["name"] not in ("full", "recent"))

# A cross around the setting of `make demo`.
TUNING_GRID: tuple[dict[str, float], ...] = tuple(
    {"learning_rate": rate, "dropout": dropout}
    for rate, dropout in ((5e-3, 0.0), (1e-2, 0.0), (2.5e-3, 0.0), (5e-3, 0.1))
)
# By family: the best of the search where it is better by .1, else the first.
CHOSEN: dict[str, dict[str, float]] = dict.fromkeys(
    ("full", "recent", "tok_serial", "kv_mask", "rec2pm", "linear_recurrence"), TUNING_GRID[0]
)


def choose_setting(method: str) -> dict[str, float]:
    """Return the learning rate and dropout that the search found, for both backbones.

    Args:
      method: a key of `METHODS`.
    """
    return CHOSEN[METHODS[method]["name"]]


def with_setting(config: Config, setting: dict[str, float]) -> Config:
    """Return `config` with a setting of `TUNING_GRID`."""
    return override(
        config,
        optim={"learning_rate": setting["learning_rate"]},
        model={"dropout": setting["dropout"]},
    )


def override(config: Config, **sections: dict[str, Any]) -> Config:
    """Return `config` with fields of some sections replaced: `override(c, method={"slots": 8})`."""
    changed = {
        section: dataclasses.replace(getattr(config, section), **fields)
        for section, fields in sections.items()
    }
    return dataclasses.replace(config, **changed)
