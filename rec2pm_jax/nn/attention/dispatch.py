"""The entry point of attention: `attend` selects an implementation and runs it."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.attention import cudnn, pallas
from rec2pm_jax.nn.attention.blockwise import attend_blockwise
from rec2pm_jax.nn.attention.dense import attend_dense
from rec2pm_jax.nn.attention.masks import Layout
from rec2pm_jax.nn.attention.spec import AttentionSpec
from rec2pm_jax.nn.platform import platform_of
from rec2pm_jax.nn.recompute import attended
from rec2pm_jax.typing import Array

# (q, k, v, layout, spec) -> outputs, all equal to `attend_dense` up to rounding.
IMPLEMENTATIONS: dict[str, Callable[[Array, Array, Array, Layout, AttentionSpec], Array]] = {
    "dense": attend_dense,
    "blockwise": attend_blockwise,
    "pallas": pallas.attend_pallas,
    "cudnn": cudnn.attend_cudnn,
}
PLATFORMS = {"pallas": ("tpu", "cpu"), "cudnn": ("gpu",)}  # the others run everywhere
AUTO = ComputeConfig()
MIN_KERNEL_ROWS = 128  # in a shorter pass a kernel's tiles would be mostly padding


def attend(
    q: Array,  # B rows H dqk
    k: Array,  # B tokens H dqk
    v: Array,  # B tokens H dv
    layout: Layout,
    spec: AttentionSpec,
    compute: ComputeConfig = AUTO,
    record: Callable[[Array], None] | None = None,
) -> Array:  # B rows H dv
    """Compute the attention of all rows of a pass.

    Args:
      q: [B, rows, H, dqk], queries of the layout's rows. The caller scales them.
      k: [B, tokens, H, dqk], keys of all tokens.
      v: [B, tokens, H, dv], values of all tokens.
      layout: who sees whom.
      spec: how scores become weights.
      compute: its `attention` names an implementation, or is auto, see `select_implementation`.
      record: called with the float32 weights [B, H, rows, keys] of each block, before dropout.

    Returns:
      [B, rows, H, dv], in the dtype of v. Rows that see nothing are zero.

    Raises:
      UserError: weights shall be recorded by an implementation that never holds them all, or the
        implementation that `compute` names does not support this pass or this platform.

    >>> import jax.numpy as jnp
    >>> from rec2pm_jax.nn.attention import causal_blocks
    >>> layout = Layout(causal_blocks(2, 0), jnp.arange(2)[None], jnp.zeros(0, int), None, None, 0)
    >>> q = k = jnp.zeros((1, 2, 1, 1))
    >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> attend(q, k, v, layout, AttentionSpec()).ravel().tolist()
    [1.0, 2.0]
    """
    if record is not None:
        if compute.attention not in ("auto", "dense"):
            raise UserError(
                f"config.compute.attention={compute.attention} never holds all weights; set it to "
                "auto or dense to look at them."
            )
        return attend_dense(q, k, v, layout, spec, record)
    name = select_implementation(compute, q, k, v, spec)
    out = IMPLEMENTATIONS[name](q, k, v, layout, spec)
    return out if name == "pallas" else attended(out)  # pallas names what its backward pass needs


def select_implementation(
    compute: ComputeConfig, q: Array, k: Array, v: Array, spec: AttentionSpec
) -> str:
    """Return the name of the implementation for a pass; the arguments are those of `attend`.

    With attention=auto it is blockwise on a CPU, where scores that leave the cache cost more than
    computing them twice. On a TPU it is pallas and on a GPU cudnn, for passes of at least
    `MIN_KERNEL_ROWS` rows that these support. Otherwise it is dense.

    Raises:
      UserError: the implementation that `compute` names is for another platform.
    """
    platform, name = platform_of(compute.platform), compute.attention
    if name == "auto":
        if platform == "cpu":
            return "blockwise"
        if q.shape[1] < MIN_KERNEL_ROWS:
            return "dense"
        if platform == "tpu":
            return "dense" if pallas.unsupported_reason(q, k, v, spec) else "pallas"
        return "dense" if cudnn.unsupported_reason(q, spec) else "cudnn"
    # On a CPU the Pallas kernel is interpreted: exact and slow, for tests.
    supported = PLATFORMS.get(name, (platform,))
    if platform not in supported:
        raise UserError(
            f"config.compute.attention={name} is for {supported[0]}, not {platform}: use auto, or "
            f"config.compute.platform={supported[0]} to compile for one."
        )
    return name


def weight_recorder(module: nn.Module) -> Callable[[Array], None] | None:
    """Return `attend`'s `record`: it stores weights in Flax's "intermediates" if these are wanted."""
    if not module.is_mutable_collection("intermediates") or module.is_initializing():
        return None

    def record(weights: Array) -> None:
        module.sow("intermediates", "attention", weights)

    return record
