"""Reading and costing optimised HLO: literal texts, and programs that XLA compiled here."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from launch.compiled import hlo, products
from launch.compiled.costs import count_costs, count_group
from launch.compiled.products import Product
from launch.compiled.report import find_largest_buffers

MODULE = (Path(__file__).parent / "loop.hlo").read_text()  # a scan of a kernel over 16 layers


@pytest.mark.smoke
def test_parse_reads_tuples_layouts_and_attributes_over_lines():
    module = hlo.parse(MODULE)
    assert module.entry == "main.1"
    assert set(module.computations) == {"fused", "cond", "body", "main.1"}
    entry = module.computations["main.1"]
    loop = entry.by_name["while.1"]
    assert [str(s) for s in loop.shapes] == ["s32[]", "f32[16,4,8]", "f32[4,8]"]
    assert [s.space for s in loop.shapes] == [0, 0, 1]
    assert loop.operands == ("init",) and set(loop.called()) == {"cond", "body"}
    assert entry.root.opcode == "all-reduce" and entry.root.op_name == "jit(step)/psum"
    kernel = module.computations["body"].by_name["kernel.3"]
    assert '"mxu_flops":"5000"' in kernel.attributes
    assert kernel.attribute("custom_call_target") == "tpu_custom_call"
    inner = module.computations["fused"].by_name["dynamic-slice.1"]
    assert inner.operands == ("param_0.1", "param_1", "constant.1", "constant.1")


def test_what_is_no_hlo_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing\n")


@pytest.mark.parametrize(
    "text, size",
    [
        ("f32[4,8]{1,0:T(8,128)}", 8 * 128 * 4),  # filled up to a tile
        ("bf16[8,1020,64]{1,2,0:T(8,128)(2,1)}", 8 * 64 * 1024 * 2),  # tokens are minor
        ("bf16[8,1020,64]{2,1,0:T(8,128)(2,1)S(1)}", 8 * 1024 * 128 * 2),  # features are
        ("s32[1000]{0:T(1024)}", 4096),
        ("pred[3,5]", 15),
        ("f32[]", 4),
        ("s4[8,8]{1,0}", 32),
    ],
)
def test_bytes_of_a_shape_with_its_tiles(text, size):
    line = f"ENTRY %e (p: f32[]) -> f32[] {{\n  ROOT %p = {text} parameter(0)\n}}\n"
    (instruction,) = hlo.parse(line).computations["e"].instructions
    assert instruction.shape.bytes == size


def test_the_body_of_a_loop_counts_by_its_trip_count():
    costs = count_costs(hlo.parse(MODULE), mxu=128)
    tile = 8 * 128 * 4
    assert costs.flops == 16 * (
        100 + 2
    )  # the kernel's own estimate; the counter and its comparison
    assert (costs.product_flops, costs.padded_flops) == (16 * 100, 16 * 5000)
    assert costs.unknown_loops == 0
    # HBM: the copy reads x; every turn reads one slice of the stack at an index, the kernel's 64 bytes,
    # and the words of addition and comparison; the sum writes its result.
    assert costs.hbm_bytes == tile + 16 * (tile + 4 + 64 + 3 * 4 + 2 * 4 + 1) + tile
    assert costs.collectives == {"all-reduce": [1, tile]}
    assert costs.wire_bytes == 2 * tile * 3 / 4


def test_a_loop_whose_trip_count_depends_on_data_counts_once_and_is_reported():
    known, unknown = "s32[]{:T(128)} constant(16)", "s32[] get-tuple-element(%arg.1), index=0"
    text = MODULE.replace(known, unknown)
    costs = count_costs(hlo.parse(text), mxu=128)
    assert costs.unknown_loops == 1 and costs.product_flops == 100


def test_largest_buffers_are_those_in_hbm_outside_of_fusions():
    found = find_largest_buffers(hlo.parse(MODULE), count=1)
    assert found == [{"shape": "f32[4,8]", "bytes": 4096, "made_by": 2, "op": "jit(step)/psum"}]


def convolution(attributes: str, result: str, left: str, right: str) -> Product:
    text = f"""ENTRY %e (a: f32[], b: f32[]) -> f32[] {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %c = {result} convolution(%a, %b), {attributes}
}}
"""
    entry = hlo.parse(text).computations["e"]
    return products.read_product(entry.root, *(entry.by_name[n].shape for n in "ab"))


def test_products_that_became_convolutions():
    """As the TPU compiler writes them: scores of 8 users x 8 heads, 20 queries against 1,020 keys."""
    scores = convolution(
        "window={size=8x8 stride=7x7 lhs_dilate=8x8}, dim_labels=0b1f_0o1i->01bf",
        *("f32[8,8,20,1020]", "bf16[8,20,8,8]", "bf16[8,1020,8,8]"),
    )
    assert scores == Product(batch=64, m=20, n=1020, k=8)
    # u, v, q, k of all heads from the layer's input: the kernel's spatial sides are outputs.
    uvqk = convolution(
        "window={size=1x4x8 pad=0_0x3_3x7_7 rhs_reversal=0x1x1}, dim_labels=0bf12_i12o0->0b12f",
        *("bf16[8,1020,4,8,8]", "bf16[8,1020,64,1,1]", "bf16[64,4,8,8,1]"),
    )
    assert uvqk.flops == 2 * 8 * 1020 * 64 * 256 and uvqk.k == 64
    contracted = convolution(
        "window={size=8}, dim_labels=b0f_0io->b0f", "f32[5,1,7]", "f32[5,8,3]", "f32[8,3,7]"
    )
    assert contracted == Product(batch=1, m=5, n=7, k=24)


def test_the_matrix_unit_is_busy_with_filled_up_sides():
    assert Product(1, 1024, 256, 128).padded_flops(128) == 2 * 1024 * 256 * 128
    assert Product(64, 1024, 256, 8).padded_flops(128) == 64 * 2 * 1024 * 256 * 128
    assert Product(1, 1024, 8, 1024).padded_flops(128) == 2 * 1024 * 128 * 1024
    assert Product(1, 1024, 256, 128).padded_flops(256) == 2 * 1024 * 256 * 256


@pytest.mark.parametrize(
    "groups, size",
    [("replica_groups={{0,2},{1,3}}", 2), ("replica_groups=[2,8]<=[16]", 8), ("", 32)],
)
def test_chips_of_a_collective(groups, size):
    text = f"ENTRY %e (p: f32[]) -> f32[] {{\n  ROOT %r = f32[] all-reduce(%p), {groups}\n}}\n"
    assert count_group(hlo.parse(text).computations["e"].root, 32) == size


@pytest.mark.parametrize("trip_count", [1, 5])
def test_costs_of_a_scan_are_those_of_its_unrolled_program(trip_count):
    """Compiled for this host, whose cost analysis of the unrolled program is XLA's own."""

    def run(x, weights, unroll):
        def step(x, w):
            return jnp.tanh(x @ w), ()

        return jax.lax.scan(step, x, weights, unroll=unroll)[0]

    x, weights = jnp.ones((64, 128)), jnp.ones((trip_count, 128, 128))
    scanned, unrolled = (
        jax.jit(run, static_argnums=2).lower(x, weights, n).compile() for n in (1, trip_count)
    )
    costs = count_costs(hlo.parse(scanned.as_text()), mxu=128)
    assert costs.product_flops == trip_count * 2 * 64 * 128 * 128
    analysis = unrolled.cost_analysis()
    assert costs.flops == pytest.approx(analysis["flops"], rel=0.03)
    assert costs.bytes_accessed == pytest.approx(analysis["bytes accessed"], rel=0.1)


NESTED = """\
%shaped (p.1: f32[4,8,8]) -> f32[32,8] {
  %p.1 = f32[4,8,8]{2,1,0} parameter(0)
  ROOT %bitcast.1 = f32[32,8]{1,0} bitcast(%p.1)
}

%sliced (p.2: f32[4,8,8], i.2: s32[]) -> f32[1,8,8] {
  %p.2 = f32[4,8,8]{2,1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  %zero.2 = s32[] constant(0)
  ROOT %slice.2 = f32[1,8,8]{2,1,0} dynamic-slice(%p.2, %i.2, %zero.2, %zero.2)
}

%outer (whole: f32[4,8,8], stack: f32[4,8,8], i.3: s32[]) -> f32[4,8,8] {
  %whole = f32[4,8,8]{2,1,0} parameter(0)
  %stack = f32[4,8,8]{2,1,0} parameter(1)
  %i.3 = s32[] parameter(2)
  %zero.3 = s32[] constant(0)
  %reshaped = f32[32,8]{1,0} fusion(%whole), kind=kLoop, calls=%shaped
  %sum = f32[] reduce(%reshaped, %zero.3), dimensions={0,1}, to_apply=%add
  %one = f32[1,8,8]{2,1,0} fusion(%stack, %i.3), kind=kLoop, calls=%sliced
  ROOT %update = f32[4,8,8]{2,1,0} dynamic-update-slice(%stack, %one, %i.3, %zero.3, %zero.3)
}

ENTRY %main (a: f32[4,8,8], b: f32[4,8,8], i: s32[]) -> f32[4,8,8] {
  %a = f32[4,8,8]{2,1,0} parameter(0)
  %b = f32[4,8,8]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %fusion = f32[4,8,8]{2,1,0} fusion(%a, %b, %i), kind=kLoop, calls=%outer
}
"""


def test_fusions_in_fusions_read_what_they_slice_and_write_in_place():
    """All of a, one slice of b, the index; and one slice is written."""
    costs = count_costs(hlo.parse(NESTED), mxu=128)
    assert costs.bytes_accessed == costs.hbm_bytes == 4 * 8 * 8 * 4 + 8 * 8 * 4 + 4 + 8 * 8 * 4


SCATTER = """\
%rows (table: f32[1000,8], at: s32[5], new: f32[5,8]) -> f32[1000,8] {
  %table = f32[1000,8]{1,0} parameter(0)
  %at = s32[5]{0} parameter(1)
  %new = f32[5,8]{1,0} parameter(2)
  ROOT %scatter = f32[1000,8]{1,0} scatter(%table, %at, %new), to_apply=%add
}

ENTRY %main (a: f32[1000,8], i: s32[5], b: f32[5,8]) -> f32[1000,8] {
  %a = f32[1000,8]{1,0} parameter(0)
  %i = s32[5]{0} parameter(1)
  %b = f32[5,8]{1,0} parameter(2)
  ROOT %fusion = f32[1000,8]{1,0} fusion(%a, %i, %b), kind=kCustom, calls=%rows
}
"""


def test_rows_that_are_added_to_count_and_not_their_table():
    """As XLA counts: rows before, rows after, what is added, and where."""
    costs = count_costs(hlo.parse(SCATTER), mxu=128)
    assert costs.bytes_accessed == 3 * 5 * 8 * 4 + 5 * 4
