"""A small pass over two slots and four items, and parameters in which no term can hide."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.nn.attention import Block, Layout, VisibleRange
from rec2pm_jax.nn.backbone import Backbone
from rec2pm_jax.nn.registry import BACKBONES, LayerSpec

SLOTS, ITEMS, DIM = 2, 4, 8
TOKENS = SLOTS + ITEMS
ROW_TIMES = np.array([[0, 0, 60, 3600, 90_000, 100_000]], np.int32)
KEY_TIMES = np.array([[0, 0, 10, 60, 3600, 90_000]], np.int32)


def make_layout(times=False):
    """Two slots that all items see, then four causal items; the second slot sees nothing."""
    hi = np.array([[1, 0, 2, 2, 2, 2]], np.int32)
    ends = np.array([[0, 0, 1, 2, 3, 4]], np.int32)
    zero = np.zeros_like(hi)
    visible = VisibleRange(*map(jnp.asarray, (zero, hi, zero, ends)))
    return Layout(
        (Block(visible, 0, TOKENS, 0, TOKENS),),
        place=jnp.array([[0, 4, 0, 1, 2, 3]], jnp.int32),
        slot_ids=jnp.array([0, 2], jnp.int32),
        row_times=jnp.asarray(ROW_TIMES) if times else None,
        key_times=jnp.asarray(KEY_TIMES) if times else None,
        num_slots=SLOTS,
    )


SEES = np.array(  # slots | items
    [
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ],
    bool,
)


def inputs():
    return np.random.default_rng(3).normal(0, 1, (1, TOKENS, DIM)).astype(np.float32)


def large_parameters(module, x, layout):
    """Parameters of order one, biases included, so that no term of an equation can hide."""
    if isinstance(module, Backbone):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, layout))
    else:
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, layout, None))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.normal(0, 0.7, a.shape).astype(np.float32), shapes)


def apply(module, params, x, layout):
    """Outputs of a layer or a stack, without dropout, compiled."""
    if isinstance(module, Backbone):
        return jax.jit(lambda *args: module(*args)[0])(params, x, layout)
    return jax.jit(lambda p, *args: module.apply({"params": p}, *args, None)[0])(params, x, layout)


def layer_of(config, score_norm=11.0, max_distance=2):
    return BACKBONES[config.backbone].build(LayerSpec(config, score_norm, max_distance, 4))


def stack(config, score_norm=5.0, **options):
    return Backbone(LayerSpec(config, score_norm, max_distance=5, num_slot_ids=4, **options))
