"""The attention seam: every pass of every method goes through `attend`."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.nn import cudnn, pallas_attention
from rec2pm_jax.nn.attention import AttentionDropout, Block, Layout, ScoreNormalizer, dense
from rec2pm_jax.nn.blockwise import blockwise
from rec2pm_jax.nn.platform import platform_of
from rec2pm_jax.nn.recompute import attended
from rec2pm_jax.typing import Array

# (q, k, v, layout, normalizer, biases, dropout) -> outputs, all equal to `dense` up to rounding.
IMPLEMENTATIONS = {
    "dense": dense,
    "blockwise": blockwise,
    "pallas": pallas_attention.pallas,
    "cudnn": cudnn.cudnn,
}
AUTO = ComputeConfig()
MIN_ROWS = 128  # of a pass: with fewer, a kernel's tiles would be mostly padding


def attend(
    q: Array,
    k: Array,
    v: Array,
    layout: Layout,
    normalizer: ScoreNormalizer,
    bias: Callable[[Block], Array] | None = None,
    dropout: AttentionDropout | None = None,
    compute: ComputeConfig = AUTO,
    watch: Callable[[Array], None] | None = None,
) -> Array:
    """Attention of all tokens of a pass.

    Args:
      q: [B, rows, H, dqk], the layout's rows; k: [B, tokens, H, dqk]; v: [B, tokens, H, dv]. Scaling
        of q is the caller's.
      layout: the pass.
      normalizer: softmax or pointwise SiLU, and the rate of dropout.
      bias: (block) -> [B or 1, rows, keys] added to the scores of every head, or None.
      dropout: randomness of dropout, or None to switch it off.
      compute: its `attention` is a name of `IMPLEMENTATIONS`, or auto, see `choose`.
      watch: called with the float32 weights [B, H, rows, keys] of each block, before dropout.

    Returns:
      [B, rows, H, dv], in the dtype of v.

    Raises:
      UserError: weights are asked for from an implementation that never holds them all; one that
        is named does not fit the pass or the platform.
    """
    biases = None if bias is None else tuple(bias(block) for block in layout.blocks)
    normalizer = normalizer if dropout is not None else ScoreNormalizer(normalizer.norm)
    if watch is not None:
        if compute.attention not in ("auto", "dense"):
            raise UserError(
                f"config.compute.attention={compute.attention} never holds all weights; set it to "
                "auto or dense to look at them."
            )
        return dense(q, k, v, layout, normalizer, biases, dropout, watch)
    name = choose(compute, q, k, v, normalizer, biases, dropout)
    out = IMPLEMENTATIONS[name](q, k, v, layout, normalizer, biases, dropout)
    return out if name == "pallas" else attended(out)  # the kernel names its own


def choose(
    compute: ComputeConfig,
    q: Array,
    k: Array,
    v: Array,
    normalizer: ScoreNormalizer,
    biases,
    dropout,
) -> str:
    """Name of the implementation for a pass; arguments as in `attend`.

    auto is blockwise on a CPU, where scores that leave the cache cost more than computing them again.
    On a TPU it is our kernel and on a GPU cuDNN, for passes of `MIN_ROWS` that fit; else dense.

    Raises:
      UserError: the named implementation is for another platform.
    """
    platform, name = platform_of(compute.platform), compute.attention
    if name == "auto":
        if platform == "cpu":
            return "blockwise"
        if q.shape[1] < MIN_ROWS:
            return "dense"
        if platform == "tpu":
            return (
                "dense"
                if pallas_attention.unsupported_reason(q, k, v, biases, dropout)
                else "pallas"
            )
        return "dense" if cudnn.unsupported_reason(q, normalizer, biases, dropout) else "cudnn"
    # Interpreted on a CPU, the kernel is exact and slow: for tests.
    elsewhere = {"pallas": ("tpu", "cpu"), "cudnn": ("gpu",)}.get(name, (platform,))
    if platform not in elsewhere:
        raise UserError(
            f"config.compute.attention={name} is for {elsewhere[0]}, not {platform}: use auto, or "
            f"config.compute.platform={elsewhere[0]} to compile for one."
        )
    return name


def watcher(module: nn.Module) -> Callable[[Array], None] | None:
    """What hands weights to Flax's "intermediates" where somebody asks for that collection."""
    if not module.is_mutable_collection("intermediates") or module.is_initializing():
        return None
    return lambda weights: module.sow("intermediates", "attention", weights)
