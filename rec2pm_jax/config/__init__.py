"""The configuration: nested frozen dataclasses that validate themselves.

model.py            data, model and method: what is computed
training.py         loss, optim, train and compute: how it is trained
whole.py            `Config`, all sections together
checks.py           the rules that values are held to

A field whose default is `None` is derived from others, as its entry says. `config_dict.py` converts a
configuration to and from plain values. `methods/registry.py` computes the hash that identifies a run.
"""

from rec2pm_jax.config.model import (
    BACKBONE_FIELDS,
    PROTOCOLS,
    DataConfig,
    MethodConfig,
    ModelConfig,
)
from rec2pm_jax.config.training import ComputeConfig, LossConfig, OptimConfig, TrainConfig
from rec2pm_jax.config.whole import Config

__all__ = [
    "BACKBONE_FIELDS",
    "PROTOCOLS",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "LossConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
]
