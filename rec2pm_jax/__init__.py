"""Rec2PM in JAX: recurrent preference memory for recommendation from long histories.

From a log of events to recommendations:

>>> import rec2pm_jax
>>> events = {"user": ["ann", "bob"] * 30, "item": ["tea", "milk", "bread"] * 20}
>>> events["timestamp"] = list(range(60))
>>> dataset = rec2pm_jax.prepare(events, "data")
>>> changes = {"data.segment": 4, "data.segments": 2, "train.steps": 2, "train.batch_size": 4}
>>> config = rec2pm_jax.load_preset("base", changes)
>>> model = rec2pm_jax.train(config, dataset, "run")
workdir ...
>>> rec2pm_jax.evaluate(model, dataset).metrics["hr@10"]  # all three items are among the best ten
1.0
>>> seen = [{"item": "tea", "time": 60}, {"item": "bread", "time": 61}]
>>> user = model.observe(model.new_user(), seen)
>>> len(model.recommend(user, k=2))
2

Everything else lives in the packages `data`, `methods`, `nn`, `training`, `evaluation` and `stream`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rec2pm_jax.api import evaluate, load, prepare, train
    from rec2pm_jax.config import Config
    from rec2pm_jax.data.dataset import open_dataset
    from rec2pm_jax.methods.registry import make_method
    from rec2pm_jax.presets import load_preset

__version__ = "0.2.0"

__all__ = [
    "Config",
    "evaluate",
    "load",
    "load_preset",
    "make_method",
    "open_dataset",
    "prepare",
    "train",
]

_MODULES = {
    "Config": "rec2pm_jax.config",
    "evaluate": "rec2pm_jax.api",
    "load": "rec2pm_jax.api",
    "load_preset": "rec2pm_jax.presets",
    "make_method": "rec2pm_jax.methods.registry",
    "open_dataset": "rec2pm_jax.data.dataset",
    "prepare": "rec2pm_jax.api",
    "train": "rec2pm_jax.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, since JAX and Orbax take seconds to import."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
