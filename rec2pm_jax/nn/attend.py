"""The attention seam: every pass of every method goes through `attend`."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.attention import Block, Dropping, Layout, Weighing, dense
from rec2pm_jax.nn.blockwise import blockwise
from rec2pm_jax.nn.pallas_attention import pallas
from rec2pm_jax.typing import Array

# (q, k, v, layout, weighing, biases, dropping) -> outputs, all equal to `dense` up to rounding.
IMPLEMENTATIONS = {"dense": dense, "blockwise": blockwise, "pallas": pallas}


def attend(
    q: Array,
    k: Array,
    v: Array,
    layout: Layout,
    weighing: Weighing,
    bias: Callable[[Block], Array] | None = None,
    dropping: Dropping | None = None,
    implementation: str = "auto",
    watch: Callable[[Array], None] | None = None,
) -> Array:
    """Attention of all tokens of a pass.

    Args:
      q, k: [B, tokens, H, dqk]; v: [B, tokens, H, dv]. Scaling of q is the caller's. Where k and v
        begin with kept tokens, q is shorter by these.
      layout: the pass.
      weighing: softmax or pointwise SiLU, and the rate of dropout.
      bias: (block) -> [B or 1, rows, keys] added to the scores of every head, or None.
      dropping: randomness of dropout, or None to switch it off.
      implementation: a name of `IMPLEMENTATIONS`, or auto: blockwise on a CPU, where scores that
        leave the cache cost more than computing them again, dense elsewhere.
      watch: called with the float32 weights [B, H, rows, keys] of each block, before dropout.

    Returns:
      [B, tokens of q, H, dv], in the dtype of v.

    Raises:
      UserError: weights are asked for from an implementation that never holds them all.
    """
    biases = None if bias is None else tuple(bias(block) for block in layout.blocks)
    weighing = weighing if dropping is not None else Weighing(weighing.norm)
    if watch is not None:
        if implementation not in ("auto", "dense"):
            raise UserError(
                f"config.compute.attention={implementation} never holds all weights; set it to "
                "auto or dense to look at them."
            )
        return dense(q, k, v, layout, weighing, biases, dropping, watch)
    if implementation == "auto":
        implementation = "blockwise" if jax.default_backend() == "cpu" else "dense"
    return IMPLEMENTATIONS[implementation](q, k, v, layout, weighing, biases, dropping)


def watcher(module: nn.Module) -> Callable[[Array], None] | None:
    """What hands weights to Flax's "intermediates" where somebody asks for that collection."""
    if not module.is_mutable_collection("intermediates") or module.is_initializing():
        return None
    return lambda weights: module.sow("intermediates", "attention", weights)
