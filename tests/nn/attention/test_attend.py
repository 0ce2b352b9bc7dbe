"""`attend`: dense formulas, blocks of any size, empty rows, and blockwise against dense."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.nn.attention import (
    AttentionDropout,
    AttentionSpec,
    Block,
    Layout,
    ScoreNormalizer,
    VisibleRange,
    attend,
    block_inputs,
    causal_blocks,
)
from tests.helpers.attention import block_biases, small_layouts

HERE = ("dense", "blockwise", "pallas")  # what computes on a CPU, the kernel interpreted
SPECS = {"softmax": AttentionSpec(), "silu": AttentionSpec(ScoreNormalizer(norm=7.0))}


def layout_of(blocks, tokens, num_slots=0):
    place = jnp.arange(tokens, dtype=jnp.int32)[None]
    return Layout(blocks, place, jnp.zeros(num_slots, jnp.int32), None, None, num_slots)


def qkv(tokens, heads=2, dim=3, batch=2):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 1, (batch, tokens, heads, dim)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("name", SPECS)
def test_blocks_of_any_size_equal_one_dense_formula(name):
    tokens = 5
    q, k, v = qkv(tokens)
    table = np.random.default_rng(1).normal(0, 1, (1, tokens, tokens)).astype(np.float32)

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
        spec = SPECS[name].replace(biases=block_biases(layout, table))
        out = jax.jit(partial(attend, layout=layout, spec=spec))(q, k, v)
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("implementation", HERE)
@pytest.mark.parametrize("name", SPECS)
def test_rows_that_see_nothing_give_zero_and_finite_gradients(name, implementation):
    q, k, v = qkv(3)
    none = jnp.zeros((1, 3), jnp.int32)
    seen = jnp.array([[0, 2, 0]], jnp.int32)  # only the middle row sees anything
    layout = layout_of((Block(VisibleRange(none, none, none, seen), 0, 3, 0, 3),), 3)

    run = jax.jit(lambda *args: attend(*args, layout, SPECS[name], ComputeConfig(implementation)))

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
    for spec in SPECS.values():
        run = jax.jit(partial(attend, layout=layout, spec=spec))
        before, after = run(q, k, v), run(q, huge_k, huge_v)
        np.testing.assert_array_equal(before[:, :3], after[:, :3])


def test_softmax_survives_large_scores():
    scores = jnp.array([[[[1e4, 1e4, -1e4]]]])
    weights = ScoreNormalizer()(scores, jnp.ones((1, 1, 1, 3), bool))
    np.testing.assert_allclose(weights[0, 0, 0], [0.5, 0.5, 0.0])


CASES = [
    (name, kind, 2) for name in small_layouts() for kind in ("dropped softmax", "silu, own bias")
]
CASES += [("reference", kind, n) for kind in ("softmax", "silu, one bias") for n in (1, 2, 4)]


@pytest.mark.parametrize("name, kind, users_at_once", CASES)
def test_blockwise_equals_dense_with_gradients(name, kind, users_at_once, monkeypatch):
    layout = small_layouts()[name]()
    users, kept = 4, layout.blocks[0].row_start
    tokens = layout.blocks[-1].row_stop
    rng = np.random.default_rng(0)
    k, v = (rng.normal(0, 1, (users, tokens, 2, 3)).astype(np.float32) for _ in range(2))
    q = rng.normal(0, 1, (users, tokens - kept, 2, 3)).astype(np.float32)
    rows = users if "own" in kind else 1
    table = rng.normal(0, 1, (rows, tokens, tokens)).astype(np.float32)
    normalizer, dropout = ScoreNormalizer(norm=5.0 if "silu" in kind else 0.0), None
    if "dropped" in kind:
        dropout = AttentionDropout(jax.random.key(3), jnp.array([4, 0, 9, 7], jnp.int32), 100)

    def run(implementation, q, k, v, table):
        biases = block_biases(layout, table) if "bias" in kind else None
        spec = AttentionSpec(normalizer, biases, dropout)
        out = attend(q, k, v, layout, spec, ComputeConfig(implementation))
        return jnp.sum(
            jnp.sin(out) * jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape)
        ), out

    # Room for the scores of `users_at_once` users of the largest block.
    largest = max((b.row_stop - b.row_start) * b.key_stop for b in layout.blocks)
    monkeypatch.setattr(block_inputs, "SCORE_BYTES", 4 * 2 * largest * users_at_once)
    results = {
        which: jax.jit(jax.value_and_grad(partial(run, which), (0, 1, 2, 3), has_aux=True))(
            q, k, v, table
        )
        for which in ("dense", "blockwise")
    }
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(same, results["blockwise"], results["dense"])


def test_blockwise_training_keeps_no_scores():
    """Temporaries of the gradient at 1,000 events: well below one copy of all scores."""
    shape = jax.ShapeDtypeStruct((8, 1000, 4, 16), jnp.float32)
    layout = layouts.causal(1000, None, None)

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v, layout, AttentionSpec(), ComputeConfig("blockwise")) ** 2)

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
    scores = 4 * 8 * 4 * 1000 * 1000
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 2


def test_weights_can_be_recorded_in_the_dense_implementation_only():
    q, k, v = qkv(4)
    layout = layout_of(causal_blocks(4, 0, 2), 4)
    seen = []
    attend(q, k, v, layout, AttentionSpec(), record=seen.append)
    assert [weights.shape for weights in seen] == [(2, 2, 2, 2), (2, 2, 2, 4)]
    with pytest.raises(UserError, match="compute.attention"):
        attend(q, k, v, layout, AttentionSpec(), ComputeConfig("blockwise"), record=seen.append)
