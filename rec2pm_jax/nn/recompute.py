"""What a layer keeps for its backward pass, and what it makes again there.

Stored for every layer are its input and what attention returns, of which the rest follows without
looking at other tokens again: projections, norms, gates and dropout. On a TPU reading them back costs
more than making them. On a CPU it does not, and there nothing is made twice.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.nn.platform import platform_of
from rec2pm_jax.typing import Array

_ATTENDED = "attended"


def attended(x: Array) -> Array:
    """Names x as what attention returns, or what its own backward pass needs of it."""
    return checkpoint_name(x, _ATTENDED)


def layer_pass(
    run: Callable, compute: ComputeConfig, scanned: bool, remat: Callable = nn.remat
) -> Callable:
    """`run(layer, *arrays)`, under `compute.recompute` with a backward pass that runs it again.

    scanned: whether it is the body of a loop, where the compiler cannot merge both passes again.
    remat: `jax.checkpoint` for a function of arrays alone.
    """
    wanted = compute.recompute
    if wanted == "none" or (wanted == "auto" and platform_of(compute.platform) != "tpu"):
        return run
    policy = jax.checkpoint_policies.save_only_these_names(_ATTENDED)
    return remat(run, policy=policy, prevent_cse=not scanned)
