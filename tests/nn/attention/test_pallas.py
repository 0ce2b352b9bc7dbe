"""The Pallas kernel, interpreted, against dense attention; the choice of an implementation; cuDNN."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.benchmarks.flops import count_matmul_flops
from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.nn.attention import AttentionDropout, AttentionSpec, ScoreNormalizer, attend
from rec2pm_jax.nn.attention.dispatch import select_implementation
from rec2pm_jax.nn.attention.pallas_tiles import place_heads
from tests.helpers.attention import inputs, small_layouts, with_gradients

SOFTMAX, SILU = ScoreNormalizer(), ScoreNormalizer(norm=5.0)


def check(layout, normalizer, heads, dim, bias=0, dtype="float32", tolerance=2e-5):
    arrays = inputs(layout, heads, dim, bias=bias, dtype=dtype)
    results = [
        with_gradients(ComputeConfig(name), layout, normalizer, bias > 0, *arrays)
        for name in ("pallas", "dense")
    ]
    (_, out), gradients = results[0]
    assert out.dtype == dtype and [g.dtype for g in gradients[:3]] == [dtype] * 3

    def same(a, b):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))

    jax.tree.map(same, *results)


@pytest.mark.parametrize("name", small_layouts())
def test_every_layout_silu_with_a_bias_for_each_user(name):
    check(small_layouts()[name](), SILU, heads=2, dim=8, bias=4)


@pytest.mark.parametrize("name", small_layouts())
def test_every_layout_softmax(name):
    check(small_layouts()[name](), SOFTMAX, heads=2, dim=8)


# Several tiles of rows and keys, the last ones partly beyond the tokens.
LONG = dict(n=300, window=60)


@pytest.mark.parametrize(
    "name, normalizer, heads, dim, bias",
    [
        ("reference", SILU, 8, 8, 0),
        ("reference", SOFTMAX, 4, 16, 0),
        ("masked", SILU, 2, 3, 1),
        ("update", SOFTMAX, 1, 8, 1),
        ("causal", SOFTMAX, 3, 2, 4),
    ],
)
def test_tiles_of_rows_and_keys(name, normalizer, heads, dim, bias):
    check(small_layouts(**LONG)[name](), normalizer, heads, dim, bias)


@pytest.mark.parametrize("normalizer", [SILU, SOFTMAX], ids=["silu", "softmax"])
def test_bfloat16_is_as_near_as_its_rounding(normalizer):
    check(small_layouts()["reference"](), normalizer, 2, 8, dtype="bfloat16", tolerance=0.03)


def test_heads_share_slabs_that_start_where_registers_do():
    # 8 heads of 8 features: pairs share 16 rows of bfloat16, each has its own 8 of float32.
    pairs = [(h.begin, h.stop, h.own_begin, h.own_stop) for h in place_heads(32, 4, 16)]
    assert pairs == [(0, 16, 0, 8), (0, 16, 8, 16), (16, 32, 0, 8), (16, 32, 8, 16)]
    alone = [(h.begin, h.stop, h.own_begin, h.own_stop) for h in place_heads(32, 4, 8)]
    assert alone == [(0, 8, 0, 8), (8, 16, 0, 8), (16, 24, 0, 8), (24, 32, 0, 8)]
    # 3 features fit no register: all heads are one slab.
    assert {(h.begin, h.stop) for h in place_heads(9, 3, 8)} == {(0, 9)}


def test_costs_of_the_kernel_are_those_of_the_unrolled_xla_path():
    """Products forward are the same; backward the kernel makes scores once more, 5 for 4."""
    layout = small_layouts(n=256, window=64)["reference"]()
    q, k, v = inputs(layout, 2, 8)[:3]

    def forward(name):
        return lambda q, k, v: attend(q, k, v, layout, AttentionSpec(SILU), ComputeConfig(name))

    def both(name):
        return lambda q, k, v: jax.vjp(forward(name), q, k, v)[1](v)

    one, two = (count_matmul_flops(forward(name), q, k, v) for name in ("pallas", "dense"))
    assert one == two
    # XLA counts some ten elementwise operations beside the 2 x 2 x 8 of a score and its use.
    dense = jax.jit(forward("dense")).lower(q, k, v).compile().cost_analysis()["flops"]
    assert one < dense < 1.5 * one
    assert count_matmul_flops(both("pallas"), q, k, v) == 7 / 6 * count_matmul_flops(
        both("dense"), q, k, v
    )


@pytest.mark.parametrize(
    "platform, normalizer, dtype, rows, expected",
    [
        ("cpu", SILU, "bfloat16", 200, "blockwise"),
        ("tpu", SILU, "bfloat16", 200, "pallas"),
        ("tpu", SOFTMAX, "float32", 200, "pallas"),
        ("tpu", SILU, "bfloat16", 1, "dense"),
        ("gpu", SOFTMAX, "bfloat16", 200, "cudnn"),
        ("gpu", SOFTMAX, "float32", 200, "dense"),
        ("gpu", SILU, "bfloat16", 200, "dense"),
    ],
)
def test_auto_goes_by_platform_and_shape(platform, normalizer, dtype, rows, expected):
    q = k = v = jax.ShapeDtypeStruct((1, rows, 2, 8), jnp.dtype(dtype))
    compute = ComputeConfig(platform=platform)
    assert select_implementation(compute, q, k, v, AttentionSpec(normalizer)) == expected


def test_auto_leaves_what_does_not_fit_to_dense():
    spec = AttentionSpec(dropout=AttentionDropout(jax.random.key(0), jnp.zeros(1, jnp.int32), 9))
    short = jax.ShapeDtypeStruct((1, 200, 2, 8), jnp.bfloat16)
    long = jax.ShapeDtypeStruct((1, 100_000, 2, 64), jnp.bfloat16)
    for platform in ("tpu", "gpu"):
        compute = ComputeConfig(platform=platform)
        assert select_implementation(compute, short, short, short, spec) == "dense"
    compute = ComputeConfig(platform="tpu")
    assert select_implementation(compute, long, long, long, AttentionSpec(SILU)) == "dense"


def attend_by(name, platform, q, normalizer=SILU, dropout=None):
    layout = layouts.causal(q.shape[1], None, None)
    spec = AttentionSpec(normalizer, dropout=dropout)
    return attend(q, q, q, layout, spec, ComputeConfig(name, platform))


def test_what_is_named_and_does_not_fit_says_why():
    q = jnp.zeros((1, 8, 2, 8), jnp.float32)
    with pytest.raises(UserError, match="attention=pallas is for tpu, not gpu"):
        attend_by("pallas", "gpu", q)
    with pytest.raises(UserError, match="attention=cudnn is for gpu, not cpu"):
        attend_by("cudnn", "cpu", q)
    dropout = AttentionDropout(jax.random.key(0), jnp.zeros(1, jnp.int32), 9)
    with pytest.raises(UserError, match="pallas does not fit.*dropout=0"):
        attend_by("pallas", "tpu", q, SOFTMAX, dropout)
    with pytest.raises(UserError, match="MiB of vector memory"):
        attend_by("pallas", "tpu", jnp.zeros((1, 100_000, 2, 64), jnp.bfloat16))
    with pytest.raises(UserError, match="cudnn does not fit.*SiLU"):
        attend_by("cudnn", "gpu", q)
    with pytest.raises(UserError, match="cudnn does not fit.*dtype=bfloat16"):
        attend_by("cudnn", "gpu", q, SOFTMAX)
    with pytest.raises(UserError, match="cudnn does not fit.*head dimension 3"):
        attend_by("cudnn", "gpu", jnp.zeros((1, 8, 2, 3), jnp.bfloat16), SOFTMAX)


LOWERED = """
import jax, jax.numpy as jnp
from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.nn.attention import ScoreNormalizer
from tests.helpers.attention import inputs, small_layouts, with_gradients

# JAX promises no stability of these calls between versions; here they are only looked at.
calls = ["__cudnn$fmhaScaleBiasSoftmax" + end for end in ("", "Backward")]
checks = [jax.export.DisabledSafetyCheck.custom_call(call) for call in calls]
for name in ("update", "reference", "causal"):  # with odd lengths
    layout = small_layouts(n=15, window=5)[name]()
    arrays = inputs(layout, 2, 8, dtype="bfloat16")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    for platform in ("auto", "gpu"):
        compute = ComputeConfig("cudnn" if platform == "gpu" else "dense", platform)
        run = jax.jit(lambda *a: with_gradients(compute, layout, ScoreNormalizer(), False, *a))
        exported = jax.export.export(run, platforms=["cuda"], disabled_checks=checks)(*shapes)
        text = exported.mlir_module()
        print(name, platform, text.count("@__cudnn$fmha"), text.count("Backward("))
"""


def test_cudnn_is_in_the_program_lowered_for_cuda():
    """On a host without CUDA: a stand-in tells JAX that cuDNN is there, the rest is real."""
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join([str(root), str(root / "tests" / "helpers" / "fake_cuda")])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", LOWERED], env=environment, capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [line.split() for line in done.stdout.splitlines()]
    blocks = {"update": 1, "reference": 2, "causal": 1}
    for name, platform, calls, backward in found:
        wanted = blocks[name] if platform == "gpu" else 0
        assert (int(calls), int(backward)) == (2 * wanted, wanted), (name, platform)
    assert len(found) == 6
