"""SASRec and HSTU layers against float64 transcriptions of their equations; dropout; the stack."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import ComputeConfig, ModelConfig
from rec2pm_jax.nn import dropout
from rec2pm_jax.nn.attention import AttentionDropout, Block, Layout, VisibleRange
from rec2pm_jax.nn.backbone import Backbone
from rec2pm_jax.nn.cache import Rows
from rec2pm_jax.nn.dropout import Dropout, random_bytes
from rec2pm_jax.nn.embedding import EventEmbedding
from rec2pm_jax.nn.hstu import HSTULayer, time_bucket
from rec2pm_jax.nn.sasrec import SASRecLayer
from tests.helpers import numpy_reference as slow

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
    init = lambda: module.init(jax.random.key(0), x, layout, None)  # noqa: E731
    shapes = jax.eval_shape(init)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.normal(0, 0.7, a.shape).astype(np.float32), shapes)


def apply(module, params, x, layout):
    """Without dropout, compiled."""
    return jax.jit(lambda *args: module.apply(*args, None)[0])({"params": params}, x, layout)


@pytest.mark.smoke
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_sasrec_layer_is_its_equation(act):
    config = ModelConfig(dim=DIM, heads=2, ffn_dim=12, activation=act, dropout=0.5)
    layer, x, layout = SASRecLayer(config), inputs(), make_layout()
    params = large_parameters(layer, x, layout)
    expected = slow.sasrec_layer(slow.float64(params), np.asarray(x[0], np.float64), SEES, act)
    out = apply(layer, params, x, layout)
    np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.smoke
@pytest.mark.parametrize("bias", ["none", "position", "position_time"])
def test_hstu_layer_is_its_equation(bias):
    config = ModelConfig(backbone="hstu", dim=DIM, heads=2, head_dim=3, relative_bias=bias)
    layer = HSTULayer(config, norm=11.0, max_distance=2, num_slot_ids=4)
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


@pytest.mark.parametrize("bias", ["position", "position_time"])
def test_relative_bias_is_learned_per_layer(bias):
    """Every bias parameter gets a gradient."""
    config = ModelConfig(backbone="hstu", dim=DIM, heads=2, relative_bias=bias)
    layer = HSTULayer(config, norm=11.0, max_distance=3, num_slot_ids=4)
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


def stack(config, norm=5.0, **options):
    return Backbone(config, norm=norm, max_distance=5, num_slot_ids=4, **options)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_unrolled_layers_equal_scanned_ones(backbone):
    config = dict(backbone=backbone, dim=DIM, heads=2, layers=2, dropout=0.0)
    x, layout = inputs(), make_layout()
    scanned, unrolled = (stack(ModelConfig(**config, scan_layers=scan)) for scan in (True, False))
    params = large_parameters(scanned, x, layout)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, large_parameters(unrolled, x, layout)
    )
    np.testing.assert_allclose(
        apply(scanned, params, x, layout), apply(unrolled, params, x, layout), atol=1e-6
    )
    # Costs reported by XLA count a loop body once: the unrolled build must hold no loop.
    for module, loops in ((scanned, True), (unrolled, False)):
        program = jax.jit(module.apply).lower({"params": params}, x, layout).as_text()
        assert ("while" in program) == loops


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(("backbone", "bias"), [("sasrec", "none"), ("hstu", "position")])
def test_a_pass_on_kept_tokens_is_the_rest_of_the_whole_pass(backbone, bias, scan):
    """The first slot sees only itself: with its keys and values kept, the others need no row of it."""
    config = ModelConfig(
        backbone=backbone, dim=DIM, heads=2, head_dim=3, relative_bias=bias, scan_layers=scan
    )
    module, x, layout = stack(config), inputs(), make_layout()
    params = large_parameters(module, x, layout)
    run = jax.jit(module.apply, static_argnames="keep")
    whole, kept = run({"params": params}, x, layout, keep=1)
    assert kept.k.shape == kept.v.shape == (2, 1, 1, 2, 3)
    visible = VisibleRange(*(span[:, 1:] for span in layout.blocks[0].visible))
    rest = layout.replace(blocks=(Block(visible, 1, TOKENS, 0, TOKENS),))
    out, nothing = run({"params": params}, x[:, 1:], rest, kept=kept)
    np.testing.assert_allclose(out, whole[:, 1:], atol=1e-5)
    assert nothing.k.size == nothing.v.size == 0


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
    kernel = init(jax.random.key(0), inputs(), make_layout())["params"]["layers"]["query"]["kernel"]
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
    ("backbone", "attention", "only"),
    [
        ("sasrec", "dense", Rows(1, 3)),
        ("sasrec", "pallas", None),
        ("hstu", "dense", None),
        ("hstu", "pallas", Rows(1, 3)),
    ],
)
def test_recomputing_changes_what_is_kept_and_nothing_else(backbone, attention, only):
    """Gradients are equal, dropout included; of what was kept less than half is left."""
    rate = 0.5 if (backbone, attention) != ("sasrec", "pallas") else 0.0  # its weights would drop
    config = ModelConfig(backbone=backbone, dim=DIM, heads=2, layers=3, dropout=rate)
    x, layout = inputs(), make_layout()
    found = {}
    for recompute in ("none", "layer"):
        compute = ComputeConfig(attention=attention, recompute=recompute)
        module = stack(config, compute=compute)

        def loss(params, x, module=module):
            key, numbers = jax.random.key(4), jnp.arange(1)
            if only is None:
                rngs = {"dropout": key}
                out, _ = module.apply({"params": params}, x, layout, numbers, rngs=rngs)
            else:
                dropout = AttentionDropout(key, numbers)
                out, _ = module.rows(params, x, layout, only=only, dropout=dropout, scan=True)
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


# --- dropout ---


def test_random_bytes_are_uniform_and_independent():
    """Of one key: all values equally often, no correlation at any of the strides of an array. Of
    several keys: no two alike."""
    bytes_of = jax.jit(random_bytes, static_argnums=1)
    one = np.asarray(bytes_of(jax.random.key(0), (333, 1000))).ravel()
    expected = one.size / 256
    assert 180 < np.sum((np.bincount(one, minlength=256) - expected) ** 2) / expected < 340
    for lag in (1, 2, 3, 4, 5, 8, 64, 256, 1000, 1024, 4096):
        assert abs(np.corrcoef(one[:-lag], one[lag:])[0, 1]) < 5 / np.sqrt(one.size)
    many = np.stack([bytes_of(jax.random.key(k), (4096,)) for k in range(100)])
    apart = np.corrcoef(many) - np.eye(100)
    assert np.abs(apart).max() < 5 / np.sqrt(4096)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 9, 4), (1,)])
def test_bytes_are_the_same_on_accelerators(shape):
    words = jnp.array([5, 77, 2**31 + 3], jnp.uint32)
    cut, picked = (f(words, shape=shape) for f in (dropout._cut_words, dropout._picked_bytes))
    np.testing.assert_array_equal(cut, picked)
    assert cut.dtype == picked.dtype == jnp.uint8 and cut.shape == shape


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_at_its_rate_and_keeps_the_expectation(rate):
    x = jnp.ones((400, 400))
    rngs = {"dropout": jax.random.key(0)}
    rows = jnp.arange(400)
    out = np.asarray(Dropout(rate).apply({}, x, rows, rngs=rngs))
    assert abs((out == 0).mean() - rate) < 0.01
    assert abs(out.mean() - 1) < 0.01
    assert len(np.unique(out)) == 2
    part = Dropout(rate).apply({}, x[5:7], rows[5:7], rngs=rngs)
    np.testing.assert_array_equal(part, out[5:7])  # a row's mask does not depend on its batch


def test_dropout_is_the_identity_without_rows_or_at_rate_zero():
    x = jnp.ones((3, 3))
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, None), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, jnp.arange(3)), x)  # needs no key


@pytest.mark.parametrize("scan", [True, False])
def test_every_layer_draws_its_own_dropout(scan):
    """Two SASRec layers that add 400 * mask after a norm: both masks can be read off the output."""
    config = ModelConfig(dim=DIM, heads=2, layers=2, dropout=0.5, scan_layers=scan)
    x, layout = inputs(), make_layout()
    shapes = jax.eval_shape(lambda: stack(config).init(jax.random.key(0), x, layout))
    params = jax.tree.map(lambda a: jnp.zeros(a.shape), shapes)
    params["params"]["layers"]["ffn_out"]["bias"] += 200.0  # doubled where it is kept
    rngs = {"dropout": jax.random.key(7)}
    out = np.asarray(stack(config).apply(params, x, layout, jnp.arange(1), rngs=rngs)[0])
    second = out > 200
    first = out - 400 * second > 0  # the normed input of layer 2: high where layer 1 kept
    assert 0.2 < first.mean() < 0.8 and 0.2 < second.mean() < 0.8
    assert 0.2 < (first != second).mean() < 0.8


# --- embedding ---


def test_event_embedding_is_its_formula():
    config = ModelConfig(dim=DIM, event_types=3)
    module = EventEmbedding(config, num_items=6, max_positions=4, item_dim=config.dim)
    ids, types = jnp.array([[1, 6, 2]], jnp.int32), jnp.array([[3, 1, 2]], jnp.int32)
    places = jnp.arange(3, dtype=jnp.int32)[None]
    params = module.init(jax.random.key(0), ids, places, types)
    p = params["params"]
    assert p["item_embedding"].shape == (7, DIM) and p["type_embedding"].shape == (4, DIM)
    expected = (p["item_embedding"][ids] + p["type_embedding"][types]) * DIM**0.5
    expected = expected + p["position_embedding"][:3]
    np.testing.assert_allclose(module.apply(params, ids, places, types), expected, rtol=1e-6)


def test_positions_and_types_are_optional():
    config = ModelConfig(dim=DIM, absolute_positions=False)
    ids = jnp.array([[1, 1]], jnp.int32)
    module = EventEmbedding(config, num_items=6, max_positions=4, item_dim=config.dim)
    params = module.init(jax.random.key(0), ids, jnp.zeros_like(ids))
    assert list(params["params"]) == ["item_embedding"]
    out = module.apply(params, ids, jnp.array([[0, 1]], jnp.int32))
    np.testing.assert_array_equal(out[0, 0], out[0, 1])
