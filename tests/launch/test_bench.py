"""launch.bench: what is counted, how rows are driven, and that every suite runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from launch import bench
from launch.benchmarks import case, driver, settings, topk, train
from launch.benchmarks.flops import count_matmul_flops
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn import backbone

ROOT = Path(__file__).parents[2]


def test_flops_of_loops_are_those_of_the_unrolled_program():
    """XLA counts every product of the unrolled program and one turn of the loop."""

    def product(unroll):
        def run(x, kernels):
            def body(x, kernel):
                return jnp.einsum("bij,jk->bik", x, kernel), None

            return jax.lax.scan(body, x, kernels, unroll=unroll)[0]

        return run

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 5, 8), (6, 8, 8))]
    unrolled = jax.jit(product(6)).lower(*shapes).cost_analysis()["flops"]
    assert count_matmul_flops(product(1), *shapes) == unrolled == 2 * 6 * 3 * 5 * 8 * 8
    gradient = jax.grad(lambda x, k: product(1)(x, k).sum(), argnums=(0, 1))
    # Backwards a product becomes two; the last one's output is never needed.
    assert count_matmul_flops(gradient, *shapes) in (3 * unrolled, 3 * unrolled - unrolled / 6)


def test_flops_of_branches_and_endless_loops():
    square = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count_matmul_flops(branch, square) == 2 * 2 * 4**3
    with pytest.raises(ValueError, match="trip count"):
        count_matmul_flops(
            lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), square
        )


@pytest.mark.parametrize("method", ["full", "rec2pm_o"])
def test_flops_of_a_step_do_not_depend_on_scanned_layers(method, monkeypatch):
    """And they are most of what XLA counts, which has elementwise work too."""
    model = {"layers": 3, "heads": 2, "dim": 64, "dropout": 0.0}
    data = {"segment": 16, "segments": 2}
    config = settings.make_config(method, model, smoke=True, data=data)
    batch = settings.random_batch(config, 50)
    recurrent = make_method(config, 50)
    params = jax.eval_shape(recurrent.init, jax.random.key(0))
    scanned = train.count_gradient_flops(recurrent, params, batch)
    monkeypatch.setattr(backbone, "SCAN_LAYERS", False)
    flops = train.count_gradient_flops(recurrent, params, batch)
    assert flops == scanned

    def gradient(params, batch):
        def objective(params):
            terms = recurrent.loss(params, batch, jax.random.key(0))
            return sum(value for value, _ in terms.values())

        return jax.grad(objective)(params)

    by_xla = jax.jit(gradient).lower(params, batch).cost_analysis()["flops"]
    assert 0.7 * by_xla < flops <= by_xla


def test_rows_are_measured_and_failures_say_why():
    good = topk.make_cases(smoke=True)[0]
    bad = good._replace(name="bad", build="topk:blockwise", options=good.options | {"k": 0})
    hungry = good._replace(name="hungry", options=good.options | {"items": 2_000_000, "dim": 64})
    limits = driver.Settings(threads=1, repeats=2, max_rss=600e6)
    *_, record = driver.measure("topk", [good, bad, hungry], limits)

    measured, failed, ended = record["rows"]
    assert set(case.FIELDS) <= set(measured)
    assert measured["cpu_s"] > 0 and 50e6 < measured["peak_rss_bytes"] < 600e6
    assert 0 < measured["mfu"] < 1 and record["env"]["matmul_flops_per_s"]["float32"] > 1e8
    assert "between 1 and the 5000 rows" in failed["error"] and failed["wall_s"] is None
    assert "more than 0.6 GB" in ended["error"]


@pytest.mark.parametrize("suite", bench.SUITES)
def test_names_of_rows_are_unique(suite):
    for smoke in (False, True):
        names = [row.name for row in bench.SUITES[suite](smoke)]
        assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("suite", [*bench.SUITES, *bench.COMMANDS, *bench.SIZES])
def test_command(tmp_path, suite):
    command = [sys.executable, "-m", "launch.bench", f"--suite={suite}", "--smoke", "--threads=1"]
    command += ["--repeats=1", f"--json={tmp_path}/record.json", "--only=sasrec"]
    if suite == "torch":
        pytest.importorskip("torch")  # no extra has it
    if suite == "topk":
        command[-1] = "--only=blockwise"
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    if suite == "prepare":
        columns = {"events", "users", "events_per_s", "peak_rss_bytes", "content_hash"}
        assert columns <= set(record["rows"][0])
    if suite == "stream":
        whole, *shares = record["rows"]
        columns = {"events_per_s", "updates_per_s", "capacity_lines_per_s", "disk_bytes_per_user"}
        assert columns | {"open_s", "users"} <= set(whole)
        assert [row["share"] for row in shares] == [0.25, 0.5, 0.75, 0.9]
        assert all(row["latency_ms"].keys() == {"p50", "p95", "p99"} for row in shares)
        assert all(run["requests"] for row in shares for run in row["runs"])
    failed = {row["name"]: row["error"] for row in record["rows"] if "error" in row}
    assert record["rows"] and not failed
    assert {"cpu", "cores", "threads", "jax", "commit"} <= set(record["env"])
