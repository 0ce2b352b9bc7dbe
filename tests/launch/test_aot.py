"""launch.aot and the kernels, compiled by the real TPU compiler with no TPU present."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from launch.compiled import chips, hlo, programs, report
from launch.compiled.costs import count_costs
from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.errors import UserError
from rec2pm_jax.nn import backbone
from rec2pm_jax.nn.attention import ScoreNormalizer
from rec2pm_jax.training.partition import make_mesh
from tests.helpers.attention import inputs, objective, small_layouts
from tests.helpers.sharded import CONFIG as SHARDED

ROOT = Path(__file__).resolve().parents[2]
compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason=f"no TPU compiler here: {chips.INSTALL}"
)


def aot(tmp_path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.aot", f"--json={tmp_path / 'aot.json'}"]
    command += [f"--compilation_cache={tmp_path / 'cache'}", *arguments]
    environment = {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, cwd=tmp_path
    )


TINY = [
    f"--config={ROOT}/launch/configs/speed_hstu.py",
    *("--config.model.layers=2", "--config.model.heads=2", "--config.model.dim=16"),
    *("--config.data.segment=64", "--config.data.segments=3", "--items=300"),
]


@pytest.mark.parametrize(
    "topology, said",
    [
        ("v5x:2x2", "give a generation of v4, v5e, v5p, v6e"),
        ("v5e:two", "give a generation"),
        ("v5e", "give a generation"),
    ],
)
def test_an_unknown_topology_is_a_user_error(topology, said):
    with pytest.raises(UserError, match=said):
        chips.describe_topology(topology)


def test_without_the_compiler_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="TPU compiler is not installed: pip install"):
        chips.describe_topology("v5e:1x1")


@pytest.mark.parametrize("step", programs.BUILDERS)
def test_programs_divide_users_over_chips(step):
    """On simulated CPU devices: shapes of the results, and a batch that does not divide."""
    values = {
        "data": {"segment": 4, "segments": 3},
        "model": {"layers": 1, "heads": 1, "dim": 8},
        "train": {"batch_size": 8},
    }
    mesh = make_mesh(jax.devices("cpu")[:4])
    program = programs.BUILDERS[step](from_dict(values), 30, mesh)
    result = jax.eval_shape(program.function, *program.arguments)
    if step == "train":
        state, metrics = result
        assert state.params["embedding"]["item_embedding"].shape == (31, 8)
        assert metrics["loss/total"].shape == ()
    elif step == "read":
        assert [x.shape for x in result] == [(8, programs.K)] * 2
    else:
        assert result.memory.shape == (8, 4, 8)
    values["train"]["batch_size"] = 6
    with pytest.raises(UserError, match="batch_size=6 must be a multiple of 4 chips"):
        programs.BUILDERS[step](from_dict(values), 30, mesh)


@pytest.mark.parametrize("step", programs.BUILDERS)
def test_programs_over_a_sharded_table(step):
    """Its rows are cut over the chips and its users, too, and results say what a bucket needs."""
    program = programs.BUILDERS[step](SHARDED, 5000, make_mesh(jax.devices("cpu")[:4]))
    result = jax.eval_shape(program.function, *program.arguments)
    params = program.arguments[0].params if step == "train" else program.arguments[0]
    table = params["embedding"]["item_embedding"]
    assert table.shape == (8192 // 16, 128)
    assert table.sharding.shard_shape(table.shape) == (8192 // 16 // 4, 128)
    if step == "train":
        assert result[1]["bucket_rows"].shape == ()
    elif step == "read":
        assert [x.shape for x in result] == [(16, programs.K)] * 2 + [()]
    else:
        assert result[0].memory.shape == (16, 2, 8) and result[1].shape == ()


@pytest.mark.slow
@compiler
def test_several_topologies_make_a_list_and_a_table(tmp_path):
    """A read from a sharded table: what travels is rows, queries and the best items."""
    done = aot(
        tmp_path,
        *("--topology=v5e:2x2,v6e:2x4", "--items_per_chip=5000", "--batch_per_chip=2"),
        *("--step=read", f"--config={ROOT}/launch/configs/industrial.py"),
        *("--config.model.layers=1", "--config.data.segment=50"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    records = json.loads((tmp_path / "aot.json").read_text())
    assert [(r["topology"], r["chips"], r["items"]) for r in records] == [
        ("v5e:2x2", 4, 20_000),
        ("v6e:2x4", 8, 40_000),
    ]
    for record in records:
        assert "all-to-all" in record["collectives"]
        assert sum(c["bytes"] for c in record["collectives"].values()) < 1 << 20
    rows = [line for line in done.stdout.splitlines() if line.startswith("| v")]
    assert [row.split(" | ")[1] for row in rows] == ["20,000", "40,000"]


@pytest.mark.slow
@compiler
def test_a_report_of_eight_chips(tmp_path):
    # Fewer users per chip, and all temporaries fit the vector memory: none are left to report.
    done = aot(tmp_path, "--topology=v5e:2x4", "--batch_per_chip=8", *TINY, "--items=3000")
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "aot.json").read_text())
    assert record["chips"] == 8 and record["config"]["train"]["batch_size"] == 64
    assert record["config"]["compute"]["platform"] == "tpu"
    assert 0 < record["temp_bytes"] < record["hbm_limit_bytes"] == 16 << 30
    # The gradient of everything is summed over the chips, and nothing else is large.
    table = 3001 * 16 * 4
    reduced = record["collectives"]["all-reduce"]
    assert table <= reduced["bytes"] < 2 * table
    assert set(record["collectives"]) == {"all-reduce"}
    assert set(record["roofline_s"]) >= {"compute", "hbm", "ici"}
    assert record["bound"] in ("compute", "hbm", "ici")
    assert "Compiled, not measured" in done.stdout and "buffer" in done.stdout


@pytest.mark.slow
@compiler
@pytest.mark.parametrize("step", ["read", "update"])
def test_serving_needs_no_other_chip(tmp_path, step):
    arguments = ("--topology=v4:2x2x1", "--batch_per_chip=4", f"--step={step}")
    done = aot(tmp_path, *arguments, *TINY)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "aot.json").read_text())
    assert record["chips"] == 4 and record["collectives"] == {}


@pytest.mark.slow
@compiler
def test_what_does_not_fit_the_chip_is_said_in_a_line(tmp_path):
    big = ("--topology=v5e:1x1", "--items=100000000", "--step=update", "--batch_per_chip=1")
    done = aot(tmp_path, *big, *[a for a in TINY if "items" not in a], "--config.model.dim=256")
    assert done.returncode == 1
    assert "does not fit the chip" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@compiler
def test_costs_of_scanned_layers_are_those_of_unrolled_ones(monkeypatch):
    """FLOPs against XLA's own count of the unrolled build, the XLA path and our kernel alike.

    Without scores of own items: XLA counts what they broadcast in a fusion as often as it is read.
    """
    chip, devices = chips.describe_topology("v5e:1x1")
    found = {}
    for attention, scan in (("dense", True), ("dense", False), ("pallas", True)):
        config = from_dict(
            {
                "data": {"segment": 64, "segments": 3},
                "model": dict(
                    backbone="hstu", layers=3, heads=2, dim=32, dropout=0.0, repeat_head=False
                ),
                "method": {"exact_entries": 0},
                "loss": {"negatives": 16},
                "train": {"batch_size": 4},
                "compute": {"attention": attention},
            }
        )
        program = programs.build_train(programs.for_tpu(config), 100, make_mesh(devices))
        with monkeypatch.context() as patch:
            if not scan:
                patch.setattr(backbone, "SCAN_LAYERS", False)
            compiled, _ = report.compile_program(program)
        found[attention, scan] = count_costs(hlo.parse(compiled.as_text()), chip.mxu), compiled
    scanned, (unrolled, compiled) = found["dense", True][0], found["dense", False]
    xla = compiled.cost_analysis()
    assert scanned.flops == pytest.approx(xla["flops"], rel=0.05)
    assert unrolled.flops == pytest.approx(xla["flops"], rel=0.05)
    assert 0.5 * xla["bytes accessed"] < unrolled.bytes_accessed < 1.1 * xla["bytes accessed"]
    # Both compute scores once more in the backward pass, 7 products in all: the XLA path, as layers
    # are recomputed, and the kernel always.
    kernel = found["pallas", True][0]
    assert kernel.product_flops == pytest.approx(scanned.product_flops, rel=0.01)


CASES = [
    ("reference", ScoreNormalizer(norm=9.0), 8, 8, 0, "bfloat16"),
    ("update", ScoreNormalizer(norm=9.0), 8, 8, 4, "bfloat16"),
    ("masked", ScoreNormalizer(norm=9.0), 2, 16, 1, "float32"),
    ("reference", ScoreNormalizer(), 4, 16, 0, "bfloat16"),
    ("cached", ScoreNormalizer(), 1, 64, 0, "float32"),
    ("causal", ScoreNormalizer(), 2, 128, 0, "bfloat16"),
]


@pytest.mark.slow
@compiler
@pytest.mark.parametrize("name, normalizer, heads, dim, bias, dtype", CASES)
def test_the_kernel_compiles_for_a_tpu(name, normalizer, heads, dim, bias, dtype):
    """Forward and backward by the TPU's own compiler, several tiles of rows and keys."""
    _, devices = chips.describe_topology("v5e:1x1")
    one = jax.sharding.SingleDeviceSharding(devices[0])
    layout = small_layouts(n=300, window=60)[name]()
    arrays = inputs(layout, heads, dim, bias=bias, dtype=dtype)
    compute = ComputeConfig("pallas", "tpu")
    run = partial(objective, compute, layout, normalizer, bias > 0)
    gradients = jax.value_and_grad(run, (0, 1, 2, 3) if bias else (0, 1, 2), has_aux=True)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one) for x in arrays]
    compiled = jax.jit(gradients).lower(*shapes).compile()
    kernels = [
        i
        for computation in hlo.parse(compiled.as_text()).computations.values()
        for i in computation.instructions
        if i.attribute("custom_call_target") == "tpu_custom_call"
    ]
    assert sorted(i.name.split(".")[0] for i in kernels) == [
        "attention_backward",
        "attention_forward",
    ]
    # No scores beside the kernel: less than one head's of all users in float32.
    scores = 4 * arrays[0].shape[0] * jnp.prod(jnp.array([x.shape[1] for x in arrays[:2]]))
    assert compiled.memory_analysis().temp_size_in_bytes < max(scores, 4 * arrays[3].nbytes)
