"""The mask rule and the attention seam: dense formulas, blocks of any size, empty rows."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.nn.attention import (
    Block,
    Layout,
    Spans,
    attend,
    causal_blocks,
    mask_of,
    silu_weights,
    softmax_weights,
)

WEIGHERS = {"softmax": softmax_weights, "silu": partial(silu_weights, norm=7.0)}


def layout_of(blocks, tokens, num_slots=0):
    place = jnp.arange(tokens, dtype=jnp.int32)[None]
    return Layout(blocks, place, jnp.zeros(num_slots, jnp.int32), None, None, num_slots)


def qkv(tokens, heads=2, dim=3, batch=2):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 1, (batch, tokens, heads, dim)).astype(np.float32) for _ in range(3)]


def test_mask_is_one_interval_of_slots_and_one_of_items():
    spans = Spans(*(jnp.array(x, jnp.int32) for x in ([[0, 1]], [[1, 2]], [[0, 2]], [[2, 2]])))
    block = Block(spans, 0, 2, 0, 5)
    # keys: 2 slots | 3 items
    np.testing.assert_array_equal(mask_of(block, 2)[0], [[1, 0, 1, 1, 0], [0, 1, 0, 0, 0]])
    items_only = Block(spans, 0, 2, 2, 5)
    np.testing.assert_array_equal(mask_of(items_only, 2)[0], [[1, 1, 0], [0, 0, 0]])


def test_a_block_may_leave_out_first_items():
    spans = Spans(*(jnp.array([[x]], jnp.int32) for x in (0, 1, 2, 4)))
    block = Block(spans, 0, 1, 0, 7, item_start=1)
    # keys: 2 slots | items 1 .. 4
    np.testing.assert_array_equal(mask_of(block, 2)[0], [[1, 0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(block.keys(jnp.arange(7)[None], 2)[0], [0, 1, 3, 4, 5, 6])


def test_mask_broadcasts_rows_shared_by_the_batch():
    one = jnp.array([[0]], jnp.int32)
    ends = jnp.array([[1], [2]], jnp.int32)
    mask = mask_of(Block(Spans(one, one + 1, one, ends), 0, 1, 0, 3), 1)
    np.testing.assert_array_equal(mask, [[[1, 1, 0]], [[1, 1, 1]]])


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 128])
def test_causal_blocks_cover_the_lower_triangle(rows):
    full = np.zeros((5, 5), int)
    for block in causal_blocks(5, 0, rows):
        mask = np.asarray(mask_of(block, 0)[0])
        full[block.row_start : block.row_stop, block.key_start : block.key_stop] = mask
    np.testing.assert_array_equal(
        full,
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    )


@pytest.mark.parametrize("name", WEIGHERS)
def test_blocks_of_any_size_equal_one_dense_formula(name):
    tokens = 5
    q, k, v = qkv(tokens)
    table = np.random.default_rng(1).normal(0, 1, (1, tokens, tokens)).astype(np.float32)

    def bias(block):
        keys = slice(block.key_start, block.key_stop)
        return table[:, block.row_start : block.row_stop, keys]

    scores = np.einsum("bqhd,bkhd->bhqk", q, k).astype(np.float64) + np.asarray(table)[:, None]
    below = np.tril(np.ones((tokens, tokens)))
    if name == "softmax":
        e = np.exp(scores) * below
        weights = e / e.sum(-1, keepdims=True)
    else:
        weights = scores / (1 + np.exp(-scores)) / 7.0 * below
    expected = np.einsum("bhqk,bkhd->bqhd", weights, v)
    for rows in (1, 2, 3, 128):
        layout = layout_of(causal_blocks(tokens, 0, rows), tokens)
        out = jax.jit(partial(attend, layout=layout, weigh=WEIGHERS[name], bias=bias))(q, k, v)
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("name", WEIGHERS)
def test_rows_that_see_nothing_give_zero_and_finite_gradients(name):
    q, k, v = qkv(3)
    none = jnp.zeros((1, 3), jnp.int32)
    seen = jnp.array([[0, 2, 0]], jnp.int32)  # only the middle row sees anything
    layout = layout_of((Block(Spans(none, none, none, seen), 0, 3, 0, 3),), 3)

    run = jax.jit(lambda *args: attend(*args, layout, WEIGHERS[name]))

    def total(args):
        return jnp.sum(run(*args) ** 2)

    out = run(q, k, v)
    assert not np.any(out[:, [0, 2]]) and np.all(out[:, 1])
    for gradient in jax.jit(jax.grad(total))((q, k, v)):
        assert np.all(np.isfinite(gradient))


def test_masked_keys_do_not_matter_even_when_huge():
    q, k, v = qkv(4)
    layout = layout_of(causal_blocks(4, 0, 2), 4)
    huge_k, huge_v = k.copy(), v.copy()
    huge_k[:, 3] = huge_v[:, 3] = 1e4
    for weigh in WEIGHERS.values():
        run = jax.jit(partial(attend, layout=layout, weigh=weigh))
        before, after = run(q, k, v), run(q, huge_k, huge_v)
        np.testing.assert_array_equal(before[:, :3], after[:, :3])


def test_softmax_survives_large_scores():
    scores = jnp.array([[[[1e4, 1e4, -1e4]]]])
    weights = softmax_weights(scores, jnp.ones((1, 1, 1, 3), bool))
    np.testing.assert_allclose(weights[0, 0, 0], [0.5, 0.5, 0.0])
