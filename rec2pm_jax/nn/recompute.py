"""What a layer keeps for its backward pass, and what the backward pass recomputes.

Stored for each layer are its input and the output of attention. Everything else (projections, norms,
gates, dropout) follows from these without looking at other tokens. On a TPU reading the intermediate
results back costs more than recomputing them. On a CPU it does not, and nothing is recomputed there.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.nn.platform import platform_of
from rec2pm_jax.typing import Array

_ATTENDED = "attended"


def attended(x: Array) -> Array:
    """Name x as an output of attention, which backward passes store."""
    return checkpoint_name(x, _ATTENDED)


def layer_pass(run: Callable, compute: ComputeConfig, scanned: bool) -> Callable:
    """Return `run(*arrays)`, with a backward pass that recomputes on a TPU.

    Args:
      run: a layer as a function of arrays.
      compute: how results are computed.
      scanned: whether `run` is the body of a loop, where the compiler cannot merge the recomputation
        with the forward pass.
    """
    if platform_of(compute.platform) != "tpu":
        return run
    policy = jax.checkpoint_policies.save_only_these_names(_ATTENDED)
    return jax.checkpoint(run, policy=policy, prevent_cse=not scanned)
