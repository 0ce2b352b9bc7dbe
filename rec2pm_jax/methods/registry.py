"""The methods that `config.method.name` may name, and what identifies a run.

Each method is one file in this package whose builder has the decorator `register_method`. Nothing else
names it: the configuration, evaluation and launch commands ask this registry.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

from rec2pm_jax.config import BACKBONE_FIELDS, Config
from rec2pm_jax.methods.method import Method
from rec2pm_jax.nn.registry import BACKBONES
from rec2pm_jax.registry import Registry

METHODS: Registry[Callable[[Config, int], Method]] = Registry("method.name", "rec2pm_jax.methods")
register_method = METHODS.register


def make_method(config: Config, num_items: int) -> Method:
    """Build the configured method.

    >>> make_method(Config(), num_items=100).read_length
    25

    Args:
      config: the configuration.
      num_items: real items; the item table has one more row for padding.

    Raises:
      UserError: an unknown method or backbone, or fields that contradict each other.
    """
    return METHODS[config.method.name].build(config, num_items)


def run_identity(config: Config) -> dict[str, dict[str, Any]]:
    """Return the fields, by section, that decide what a run computes.

    They are all of data, loss and optim, and the fields of model and method that the backbone and the
    method read. Sections train and compute may change when a run is resumed. `model.item_features` is
    left out where it is off, so that records of models without content keep their hash.

    >>> from rec2pm_jax.config import MethodConfig
    >>> "consistency" in run_identity(Config(method=MethodConfig(name="full")))["method"]
    False
    """
    sections = dataclasses.asdict(config)
    read = METHODS[config.method.name].reads | {"name"}
    unread = set(BACKBONE_FIELDS) - BACKBONES[config.model.backbone].reads
    if not config.model.item_features:
        unread.add("item_features")
    return {
        "data": sections["data"],
        "loss": sections["loss"],
        "optim": sections["optim"],
        "method": {name: value for name, value in sections["method"].items() if name in read},
        "model": {name: value for name, value in sections["model"].items() if name not in unread},
    }


def config_hash(config: Config) -> str:
    """Return 12 hex digits over `run_identity`."""
    identity = json.dumps(run_identity(config), sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:12]
