"""SASRec and HSTU layers against float64 transcriptions of their equations, and stacks of layers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import ComputeConfig, ModelConfig
from rec2pm_jax.nn import backbone as backbone_lib
from rec2pm_jax.nn import recompute as recomputation
from rec2pm_jax.nn.attention import Block, VisibleRange
from rec2pm_jax.nn.cache import Rows
from rec2pm_jax.nn.layers.hstu import time_bucket
from tests.helpers import numpy_reference as slow
from tests.helpers.layers import (
    DIM,
    ITEMS,
    KEY_TIMES,
    ROW_TIMES,
    SEES,
    TOKENS,
    apply,
    inputs,
    large_parameters,
    layer_of,
    make_layout,
    stack,
)


@pytest.mark.smoke
def test_sasrec_layer_is_its_equation():
    config = ModelConfig(dim=DIM, heads=2, ffn_dim=12, dropout=0.5)
    layer, x, layout = layer_of(config), inputs(), make_layout()
    params = large_parameters(layer, x, layout)
    expected = slow.sasrec_layer(slow.float64(params), np.asarray(x[0], np.float64), SEES)
    out = apply(layer, params, x, layout)
    np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.smoke
@pytest.mark.parametrize("bias", ["none", "position", "position_time"])
def test_hstu_layer_is_its_equation(bias):
    config = ModelConfig(backbone="hstu", dim=DIM, heads=2, head_dim=3, relative_bias=bias)
    layer = layer_of(config)
    x, layout = inputs(), make_layout(times=bias == "position_time")
    params = large_parameters(layer, x, layout)
    places, slot_ids = [0, 4, 0, 1, 2, 3], [0, 2]
    tokens = [
        slow.Token(np.zeros(DIM), kind, slot, places[i], KEY_TIMES[0, i], ROW_TIMES[0, i])
        for i, (kind, slot) in enumerate(
            [("memory", slot_ids[0]), ("query", slot_ids[1] - 2), *[("item", 0)] * ITEMS]
        )
    ]
    p = slow.float64(params)
    b = slow.hstu_bias(p, tokens, slots=2)
    assert (bias == "none") == (not b.any())
    expected = slow.hstu_layer(p, np.asarray(x[0], np.float64), SEES, 11.0, b)
    out = apply(layer, params, x, layout)
    np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-2, 1e-4])
@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_epsilons_of_layer_norms_show_in_small_inputs(backbone, scale):
    """Tokens of unequal, small size: a norm with another epsilon scales them differently."""
    config = ModelConfig(backbone=backbone, dim=DIM, heads=2)
    layout = make_layout()
    x = (inputs() * scale * np.linspace(0.1, 2, TOKENS)[:, None]).astype(np.float32)
    layer = layer_of(config)
    params = large_parameters(layer, x, layout)
    p, x64 = slow.float64(params), np.asarray(x[0], np.float64)
    if backbone == "sasrec":
        expected = slow.sasrec_layer(p, x64, SEES)
    else:
        expected = slow.hstu_layer(p, x64, SEES, 11.0, np.zeros((TOKENS, TOKENS)))
    out = apply(layer, params, x, layout)
    np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", ["position", "position_time"])
def test_relative_bias_is_learned_per_layer(bias):
    """Every bias parameter gets a gradient."""
    config = ModelConfig(backbone="hstu", dim=DIM, heads=2, relative_bias=bias)
    layer = layer_of(config, max_distance=3)
    x, layout = inputs(), make_layout(times=True)
    params = large_parameters(layer, x, layout)

    def total(p):
        out, _ = layer.apply({"params": p}, x, layout, None)
        return jnp.sum(out * jnp.arange(1.0, DIM + 1))

    gradient = jax.jit(jax.grad(total))(params)
    assert np.all(gradient["position_bias"])
    np.testing.assert_array_equal(np.asarray(gradient["slot_bias"]) != 0, [1, 0, 1, 0])
    if bias == "position_time":
        assert np.any(gradient["time_bias"])


def test_time_buckets_at_their_edges():
    # Up to a day, where float32 logarithms cannot miss an edge by one second.
    edges = [math.ceil(math.exp(0.301 * b)) for b in range(8, 40, 6)]
    gaps = [0, 1, 2, 60, 3600, 86_400, 2**31 - 1, *edges, *(e - 1 for e in edges)]
    expected = [math.floor(math.log(max(g, 1)) / 0.301) for g in gaps]
    assert expected[:3] == [0, 0, 2] and expected[-len(edges)] == 7  # one below the edge of 8
    np.testing.assert_array_equal(time_bucket(jnp.array(gaps, jnp.int32)), expected)
    np.testing.assert_array_equal(time_bucket(-jnp.array(gaps, jnp.int32)), expected)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_unrolled_layers_equal_scanned_ones(backbone, monkeypatch):
    config = ModelConfig(backbone=backbone, dim=DIM, heads=2, layers=2, dropout=0.0)
    module, x, layout = stack(config), inputs(), make_layout()
    params = large_parameters(module, x, layout)
    scanned = apply(module, params, x, layout)

    def has_loop(**options):
        run = lambda params, x: module(params, x, layout, **options)  # noqa: E731
        return "while" in jax.jit(run).lower(params, x).as_text()

    unrolled = jax.jit(lambda params, x: module(params, x, layout, unroll=True)[0])(params, x)
    np.testing.assert_allclose(unrolled, scanned, atol=1e-6)
    assert has_loop() and not has_loop(unroll=True)
    # Costs reported by XLA count a loop body once: the build for them must hold no loop.
    monkeypatch.setattr(backbone_lib, "SCAN_LAYERS", False)
    assert not has_loop()


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize(("backbone", "bias"), [("sasrec", "none"), ("hstu", "position")])
def test_a_pass_on_cached_tokens_is_the_rest_of_the_whole_pass(backbone, bias, unroll):
    """The first slot sees only itself: if its keys and values are cached, no other row needs it."""
    config = ModelConfig(backbone=backbone, dim=DIM, heads=2, head_dim=3, relative_bias=bias)
    module, x, layout = stack(config), inputs(), make_layout()
    params = large_parameters(module, x, layout)
    run = jax.jit(lambda *args, **options: module(*args, **options, unroll=unroll))
    whole, own = run(params, x, layout)
    cache = jax.tree.map(lambda a: a[:, :, :1], own)
    assert cache.k.shape == cache.v.shape == (2, 1, 1, 2, 3)
    visible = VisibleRange(*(bound[:, 1:] for bound in layout.blocks[0].visible))
    rest = layout.replace(blocks=(Block(visible, 1, TOKENS, 0, TOKENS),))
    out, own_rest = run(params, x[:, 1:], rest, cache=cache)
    np.testing.assert_allclose(out, whole[:, 1:], atol=1e-5)
    np.testing.assert_allclose(own_rest.k, own.k[:, :, 1:], atol=1e-5)


def test_layers_run_in_order_each_with_its_own_parameters():
    config = ModelConfig(dim=DIM, heads=2, layers=2)
    x, layout = inputs(), make_layout()
    params = large_parameters(stack(config), x, layout)
    expected = np.asarray(x[0], np.float64)
    for i in range(2):
        layer = slow.float64(jax.tree.map(lambda a, i=i: a[i], params["layers"]))
        expected = slow.sasrec_layer(layer, expected, SEES)
    out = apply(stack(config), params, x, layout)
    np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-4)


def test_layers_start_different():
    config = ModelConfig(dim=DIM, heads=2, layers=2)
    init = jax.jit(stack(config).init)
    kernel = init(jax.random.key(0), inputs(), make_layout())["layers"]["query"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_bfloat16_stays_close_to_float32(backbone):
    config = dict(backbone=backbone, dim=DIM, heads=2, layers=2, dropout=0.0)
    x, layout = inputs(), make_layout()
    exact, half = (stack(ModelConfig(**config, dtype=d)) for d in ("float32", "bfloat16"))
    params = jax.tree.map(lambda a: a / 3, large_parameters(exact, x, layout))
    a = apply(exact, params, x, layout)
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes the two inside
        b = apply(half, params, x, layout)
        shapes = jax.eval_shape(half.init, jax.random.key(0), x, layout)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(shapes)} == {"float32"}
    assert a.dtype == jnp.float32 and b.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(a) - np.asarray(b, np.float32))
    assert 0 < difference.max() < 0.15


@pytest.mark.parametrize(
    ("backbone", "attention", "wanted"),
    [
        pytest.param("sasrec", "dense", Rows(1, 3), marks=pytest.mark.slow),
        ("sasrec", "pallas", None),
        ("hstu", "dense", None),
        pytest.param("hstu", "pallas", Rows(1, 3), marks=pytest.mark.slow),
    ],
)
def test_recomputing_changes_what_is_kept_and_nothing_else(
    backbone, attention, wanted, monkeypatch
):
    """Gradients are equal, dropout included; of what was kept less than half is left."""
    rate = 0.5 if (backbone, attention) != ("sasrec", "pallas") else 0.0  # its weights would drop
    config = ModelConfig(backbone=backbone, dim=DIM, heads=2, layers=3, dropout=rate)
    x, layout = inputs(), make_layout()
    found = {}
    for recompute in (False, True):
        monkeypatch.setattr(
            recomputation, "platform_of", lambda _, on=recompute: "tpu" if on else "cpu"
        )
        compute = ComputeConfig(attention=attention)
        module = stack(config, compute=compute)

        def loss(params, x, module=module):
            options = {"rng": jax.random.key(4), "rows": jnp.arange(1), "wanted": wanted}
            out, _ = module(params, x, layout, **options)
            return jnp.sum(jnp.sin(out))

        params = large_parameters(module, x, layout)
        backward = jax.eval_shape(lambda *at, loss=loss: jax.vjp(loss, *at)[1], params, x)
        kept = sum(leaf.size for leaf in jax.tree.leaves(backward))
        traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(params, x)
        kernels = str(traced.jaxpr).count("name=attention_forward")
        found[recompute] = traced.lower().compile()(params, x), kept, kernels
    (plain, kept, kernels), (again, kept_again, kernels_again) = found.values()
    for a, b in zip(*map(jax.tree.leaves, (plain, again)), strict=True):
        # Sums that cancel are as exact as what they are made of, which is as large as the others.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1, np.abs(a).max()))
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert kept_again - weights < (kept - weights) / 2
    assert kernels == kernels_again  # attention itself is not run twice
    assert bool(kernels) == (attention == "pallas")
