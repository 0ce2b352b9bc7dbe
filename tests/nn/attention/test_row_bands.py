"""Long passes in loops over blocks against the dense definition."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.nn.attention import (
    AttentionDropout,
    AttentionSpec,
    Layout,
    ScoreNormalizer,
    VisibleRange,
    attend,
    causal_blocks,
    mask_of,
    row_bands,
)
from rec2pm_jax.nn.attention.row_bands import group_blocks

USERS, EVENTS, S = 2, 22, 4


def reference(item_window=None):
    """Two slots a group, one user shorter than the other."""
    return layouts.reference(
        jnp.array([EVENTS, 9], jnp.int32),
        jnp.arange(1, 6, dtype=jnp.int32)[None] * S,
        layouts.Sizes(slots=2, groups=1, segment=S),
        num_items=EVENTS,
        item_window=item_window,
    )


def masked():
    """Blocks with slots and items that begin anywhere."""
    lengths = jnp.array([[3, 3, 3, 3, 3, 3], [3, 3, 3, 3, 2, 0]], jnp.int32)
    return layouts.masked(lengths, layouts.Sizes(2, 2, 3, block_rows=3), window=3)


LAYOUTS = {
    "causal": None,
    "reference": reference,
    "windowed": partial(reference, 2),
    "masked": masked,
}


def layout_of(name, monkeypatch):
    """A layout of blocks of four rows, all of which may join a band."""
    monkeypatch.setattr(row_bands, "UNROLLED_BLOCKS", 0)
    monkeypatch.setattr(row_bands, "MAX_PADDED_KEYS", 1.6)
    small = partial(causal_blocks, rows=4)
    monkeypatch.setattr(layouts, "causal_blocks", small)
    return layouts.causal(EVENTS, None, None) if name == "causal" else LAYOUTS[name]()


def objective(layout, spec, which):
    def total(q, k, v):
        out = attend(q, k, v, layout, spec, ComputeConfig(which))
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return jnp.sum(jnp.sin(out) * weights), out

    return total


def qkv(layout):
    rng = np.random.default_rng(0)
    shape = (USERS, layout.blocks[-1].row_stop, 2, 3)
    return tuple(rng.normal(0, 1, shape).astype(np.float32) for _ in range(3))


def test_masks_of_a_band_against_literal_ones(monkeypatch):
    """Segments of two events, blocks of one segment: each block reads two segments of items."""
    monkeypatch.setattr(row_bands, "UNROLLED_BLOCKS", 0)
    monkeypatch.setattr(row_bands, "MAX_PADDED_KEYS", 2)
    blocks = causal_blocks(6, 0, rows=2, segment=2, segments=2)
    [band] = group_blocks(Layout(blocks, None, None, None, None, num_slots=0))
    assert band.width == 4 and band.starts.tolist() == [0, 0, 2]
    expected = [
        [[1, 0, 0, 0], [1, 1, 0, 0]],  # items 0 to 3
        [[1, 1, 1, 0], [1, 1, 1, 1]],  # items 0 to 3
        [[1, 1, 1, 0], [1, 1, 1, 1]],  # items 2 to 5
    ]
    ranges = band.relative_ranges(0)
    for number, mask in enumerate(expected):
        visible = VisibleRange(*(bound[number] for bound in ranges))
        np.testing.assert_array_equal(mask_of(band.relative_block(visible, 0), 0)[0], mask)


@pytest.mark.parametrize("norm", [0.0, 5.0])
@pytest.mark.parametrize("name", LAYOUTS)
def test_bands_equal_dense_with_gradients(name, norm, monkeypatch):
    layout = layout_of(name, monkeypatch)
    found = group_blocks(layout)
    assert [i for band in found for i in band.numbers] == list(range(len(layout.blocks)))
    assert len(found) < len(layout.blocks)
    spec = AttentionSpec(ScoreNormalizer(norm))
    results = [
        jax.jit(jax.value_and_grad(objective(layout, spec, which), (0, 1, 2), True))(*qkv(layout))
        for which in ("dense", "blockwise")
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), *results)


def test_dropout_in_bands_is_the_same_forward_and_backward(monkeypatch):
    layout = layout_of("windowed", monkeypatch)
    dropout = AttentionDropout(jax.random.key(3), jnp.array([4, 9], jnp.int32), dropped=100)
    run = objective(layout, AttentionSpec(dropout=dropout), "blockwise")
    total = jax.jit(lambda *a: run(*a)[0])
    args = qkv(layout)
    direction = qkv(layout)[::-1]
    step = 1e-2
    moved = [
        total(*(a + s * d for a, d in zip(args, direction, strict=True))) for s in (step, -step)
    ]
    expected = (moved[0] - moved[1]) / (2 * step)
    gradient = jax.jit(jax.grad(total, (0, 1, 2)))(*args)
    got = sum(np.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    np.testing.assert_allclose(got, expected, rtol=2e-3)
    # With equal values outputs say how much was kept: blocks side by side, alike in all else, differ.
    ones = [np.zeros_like(args[0]), np.zeros_like(args[1]), np.ones_like(args[2])]
    values = jax.jit(run)(*ones)[1]
    rows = np.asarray(values)[:, layout.num_slots + 4 : layout.num_slots + 20].reshape(USERS, 4, -1)
    assert all((rows[:, i] != rows[:, i + 1]).mean() > 0.3 for i in range(3))


def test_short_passes_have_no_loops_and_long_ones_few_bodies():
    count = lambda length: len(group_blocks(layouts.causal(length, None, None)))  # noqa: E731
    assert count(1000) == 8
    assert 9 < count(16_000) < 26
    widths = [band.width for band in group_blocks(layouts.causal(16_000, None, None))]
    assert widths == sorted(widths) and widths[-1] == 16_000


def test_memory_of_long_passes_grows_with_their_length():
    """Temporaries of a gradient: far below the scores of two blocks per thousand events."""
    compute = ComputeConfig("blockwise")

    def temporaries(length):
        layout = layouts.causal(length, None, None)
        shape = jax.ShapeDtypeStruct((1, length, 4, 16), jnp.float32)

        def loss(q, k, v):
            return jnp.sum(attend(q, k, v, layout, AttentionSpec(), compute) ** 2)

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*[shape] * 3).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 4 * 4 * 128 * 4000
    assert temporaries(4000) < 20 * scores
