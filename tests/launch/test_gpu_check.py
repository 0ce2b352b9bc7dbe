"""launch.benchmarks.gpu_check: time limits, what is missing, what is counted, and the smoke form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from launch.benchmarks import gpu_steps, settings
from launch.benchmarks.gpu_steps import Step

ROOT = Path(__file__).parents[2]


def run(code, tmp_path, seconds=60.0, limit=60.0, missing=""):
    step = Step("step", limit, ["-c", code], {}, missing)
    with open(tmp_path / "log.txt", "a+") as log:
        return gpu_steps.run_step(step, time.monotonic() + gpu_steps.GRACE_S + seconds, log)


def test_a_step_is_done_failed_stopped_or_skipped(tmp_path, monkeypatch):
    assert run("print('hello')", tmp_path)["status"] == "done"
    assert run("raise SystemExit(3)", tmp_path)["status"] == "failed"
    late = run("print('never')", tmp_path, seconds=gpu_steps.LEAST_S / 2)
    assert (late["status"], late["reason"]) == ("skipped", "no time is left")
    monkeypatch.setattr(gpu_steps, "LEAST_S", 0.1)
    saving = (
        "import signal, time; signal.signal(15, lambda *_: exit(print('saved'))); time.sleep(600)"
    )
    assert run(saving, tmp_path, limit=5.0)["status"] == "stopped"
    skipped = run("", tmp_path, missing="no PyTorch is installed")
    assert gpu_steps.format_result(skipped) == "step: skipped, no PyTorch is installed"
    assert {"hello", "saved"} <= set((tmp_path / "log.txt").read_text().splitlines())


def test_verdicts_are_counted_in_output_that_is_cut_off():
    lines = [
        "tests/a.py::test_b[two words] PASSED            [ 50%]",
        "[gw0] [ 99%] FAILED tests/a.py::test_c[x(1)] ",
        "tests/a.py::test_d SKIPPED (needs a GPU)  [100%]",
        "tests/a.py::test_e ",
        "FAILED tests/a.py::test_c[x(1)] - AssertionError",
    ]
    counts = {"passed": 1, "failed": 1, "skipped": 1}
    assert gpu_steps.count_verdicts(lines) == counts | {"names": ["tests/a.py::test_c[x(1)]"]}


def test_pytorch_predicts_without_the_future():
    torch = pytest.importorskip("torch")  # no extra has it
    from launch.benchmarks.torch_sasrec import SASRec

    config = settings.make_config("full", settings.SMOKE_SASREC, smoke=True)
    model = SASRec(config, 50).eval()
    ids = torch.from_numpy(settings.random_batch(config, 50)["ids"]).long()
    changed = ids.clone()
    changed[:, 7:] = 1
    before, after = (model.encode(x[:, :-1]).detach().numpy() for x in (ids, changed))
    np.testing.assert_allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3


@pytest.mark.slow
def test_command(tmp_path):
    prepare = ["launch.prepare", "--source=synthetic", "--output_dir=data/synthetic"]
    check = ["launch.benchmarks.gpu_check", "--smoke", "--output=check", "--data=data"]
    some = "--only=tests_gpu|train_main|genrec"  # test_bench runs the suites of the others
    env = os.environ | {"PYTHONPATH": str(ROOT)}

    def call(*arguments):
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert call(*prepare, "--synthetic_users=200").returncode == 0
    done = call(*check, some)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "check/gpu_check.json").read_text())
    assert {"card", "device", "jax", "commit"} <= set(report["env"])
    steps = {step["name"]: step for step in report["steps"]}
    assert steps["tests_gpu"]["tests"]["skipped"] and steps["train_main"]["record"]["rows"]
    assert steps["genrec"]["training_steps"] == 4 and steps["genrec"]["record"]
    with tarfile.open(tmp_path / "check/genrec.tar.gz") as archive:
        assert "genrec/results/smoke.json" in archive.getnames()
    # The packed run is complete, so that a second check trains nothing.
    done = call(*check, "--only=genrec", "--resume=check/genrec.tar.gz")
    assert done.returncode == 0 and "0 to do" in (tmp_path / "check/log.txt").read_text()
