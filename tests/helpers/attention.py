"""Layouts of every kind of pass, for tests of implementations of attention."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.nn.attention import AttentionSpec, Layout, ScoreNormalizer, attend
from rec2pm_jax.typing import Array

LENGTHS = (7, 3, 0, 5)  # of four users, one of them without events


def small_layouts(n: int = 8, window: int = 4, slots: int = 2):
    """name -> () -> layout of four users with up to n events; windows divide them."""
    lengths = jnp.asarray([round(x * n / 8) for x in LENGTHS], jnp.int32)
    groups = jnp.array([2, 1, 0, 2], jnp.int32)
    sizes = layouts.Sizes(slots=slots, groups=2, segment=3 * n // 4)
    updates = dict(num_items=n, with_queries=True)
    count = n // window
    ends = (jnp.arange(2, dtype=jnp.int32)[None] + 1) * (n // 2)

    def reference(item_window):
        quarter = layouts.Sizes(slots, 1, n // 4)
        return layouts.reference(lengths, ends, quarter, num_items=n, item_window=item_window)

    def masked():
        windows = lengths[:, None] - window * jnp.arange(count, dtype=jnp.int32)
        one_group = layouts.Sizes(slots, 1, window - 1, block_rows=window)
        return layouts.masked(jnp.clip(windows, 0, window), one_group, window=window)

    def cached():
        update = layouts.update(lengths, groups, sizes, **updates)
        return layouts.without_memory_rows(update, sizes)

    return {
        "causal": lambda: layouts.causal(n, None, None),
        "update": lambda: layouts.update(lengths, groups, sizes, **updates),
        "reference": lambda: reference(None),
        "windowed reference": lambda: reference(2),
        "masked": masked,
        "cached": cached,
    }


def inputs(layout: Layout, heads: int, dim: int, users: int = 4, bias: int = 0, dtype="float32"):
    """(q, k, v, bias table [bias, tokens, tokens]) of a pass; with bias 0 the table is not used."""
    tokens, kept = layout.blocks[-1].row_stop, layout.blocks[0].row_start
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(0, 1, shape), dtype)

    q = normal(users, tokens - kept, heads, dim)
    k, v = (normal(users, tokens, heads, dim) for _ in range(2))
    return q, k, v, jnp.asarray(rng.normal(0, 1, (max(bias, 1), tokens, tokens)), jnp.float32)


def block_biases(layout: Layout, table: Array) -> tuple[Array, ...]:
    """The biases of a layout's blocks, out of a table [1 or B, tokens, tokens]."""

    def bias(block):
        part = table[:, block.row_start : block.row_stop]
        return block.select_keys(part.transpose(0, 2, 1), layout.num_slots).transpose(0, 2, 1)

    return tuple(bias(block) for block in layout.blocks)


def objective(
    compute: ComputeConfig,
    layout: Layout,
    normalizer: ScoreNormalizer,
    biased: bool,
    q,
    k,
    v,
    table,
):
    """(a scalar in which every output has a weight of its own, outputs)."""
    spec = AttentionSpec(normalizer, block_biases(layout, table) if biased else None)
    out = attend(q, k, v, layout, spec, compute)
    weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    return jnp.sum(jnp.sin(out.astype(jnp.float32)) * weights), out


def with_gradients(compute: ComputeConfig, layout, normalizer, biased: bool, *arrays):
    """((scalar, outputs), gradients by q, k, v and the bias table) of `objective`."""
    run = partial(objective, compute, layout, normalizer, biased)
    return jax.jit(jax.value_and_grad(run, (0, 1, 2, 3), has_aux=True))(*arrays)
