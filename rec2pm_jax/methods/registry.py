"""The method table."""

from __future__ import annotations

from rec2pm_jax.config import Config
from rec2pm_jax.methods.base import Method
from rec2pm_jax.methods.kv_mask import KVMask
from rec2pm_jax.methods.rec2pm import Rec2PM
from rec2pm_jax.methods.single_pass import SinglePass
from rec2pm_jax.methods.tok_serial import TokSerial

METHODS = {
    "rec2pm": Rec2PM,
    "tok_serial": TokSerial,
    "kv_mask": KVMask,
    "full": SinglePass,
    "recent": SinglePass,
}


def make_method(config: Config, num_items: int) -> Method:
    """The configured method over a catalogue of `num_items` real items."""
    return METHODS[config.method.name](config, num_items)
