"""TPU chips: their nominal figures, and the devices of a topology that need not exist."""

from __future__ import annotations

import importlib.util
import os
from importlib import metadata
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from rec2pm_jax.errors import UserError


class Chip(NamedTuple):
    """Nominal figures of one chip, decimal units except for memory.

    Attributes:
      flops: bfloat16 FLOPs per second.
      mxu: side of the matrix unit.
      hbm_limit: bytes of memory.
      hbm: bytes of memory per second.
      ici: bytes per second into the interconnect, all links together.
    """

    flops: float
    mxu: int
    hbm_limit: int
    hbm: float
    ici: float


# cloud.google.com/tpu/docs, "System architecture" of each (Gbit/s there for the interconnect).
CHIPS = {
    "v4": Chip(275e12, 128, 32 << 30, 1200e9, 2400e9 / 8),
    "v5e": Chip(197e12, 128, 16 << 30, 819e9, 1600e9 / 8),
    "v5p": Chip(459e12, 128, 95 << 30, 2765e9, 4800e9 / 8),
    "v6e": Chip(918e12, 256, 32 << 30, 1638e9, 3584e9 / 8),
}
_AXES = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
# No TPU host exists that libtpu could ask, and other processes may compile at the same time.
_NO_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # without effect: the topology decides
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
INSTALL = "pip install 'rec2pm_jax[tpu]', or just 'libtpu==0.0.42.*' beside jax 0.10"


def describe_topology(topology: str) -> tuple[Chip, list[jax.Device]]:
    """Return the chip of a topology such as v5e:16x16 and its devices, none of which needs to exist.

    Raises:
      UserError: an unknown generation, a malformed or impossible shape, or no TPU compiler.
    """
    generation, _, shape = topology.partition(":")
    sides = shape.split("x")
    if generation not in CHIPS or not all(side.isdigit() for side in sides):
        raise UserError(
            f"--topology={topology}: give a generation of {', '.join(CHIPS)} and its shape, such as "
            "v5e:1x1, v5e:16x16 or v4:2x2x1."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"The TPU compiler is not installed: {INSTALL}.")
    for name, value in _NO_HOST.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"v4": {"chip_config_name": "megacore"}}.get(generation, {})
    if all(int(side) == 1 for side in sides):  # hosts have four chips otherwise
        options = options | {"chips_per_host_bounds": (1, 1, 1)}
    name = generation + ":" + "x".join(sides + ["1"] * (_AXES[generation] - len(sides)))
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology={topology}: {error}") from error
    return CHIPS[generation], list(found.devices)


def environment() -> dict[str, str]:
    """Return the versions that a compiled program depends on."""
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
