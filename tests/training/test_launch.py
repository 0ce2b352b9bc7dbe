"""launch.train as users run it: killed at arbitrary moments, rerun, and equal bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.train_fakes import assert_same_run

ROOT = Path(__file__).parents[2]
OVERRIDES = {
    "data.segment": 5,
    "data.segments": 4,
    "model.dim": 16,
    "model.layers": 1,
    "model.dropout": 0.2,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.eval_every": 40,
    "train.eval_users": 50,
    "train.checkpoint_every": 11,
    "train.steps": 240,
}


@pytest.fixture
def launch(tmp_path):
    """Starts a launch command in `tmp_path`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)

    def start(module, **arguments):
        command = [sys.executable, "-m", f"launch.{module}"]
        command += [f"--{name}={value}" for name, value in arguments.items()]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return start


def finish(process):
    out, error = process.communicate()
    assert process.returncode == 0, error.decode()
    return out.decode()


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path, launch):
    finish(
        launch(
            "prepare",
            source="synthetic",
            output_dir="data",
            synthetic_users=100,
            synthetic_items=60,
            synthetic_length=80,
        )
    )

    def train(workdir):
        overrides = {f"config.{name}": value for name, value in OVERRIDES.items()}
        config = ROOT / "launch/configs/synthetic.py"
        return launch(
            "train",
            config=config,
            data="data",
            workdir=workdir,
            compilation_cache="cache",
            **overrides,
        )

    finish(train("undisturbed"))
    log = tmp_path / "killed" / "train" / "train.jsonl"
    moments = random.Random(0)
    resumed = []
    for target in (5, 30, 60, 110, 170):  # steps to reach before the kill; checkpoints every 11
        process = train("killed")
        resumed.append(next(line for line in process.stdout if line.startswith(b"start")))
        while not log.exists() or log.read_bytes().count(b"\n") < target:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(train("killed"))
    assert len(set(resumed)) >= 3, resumed
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")
    assert "complete: 240 steps" in finish(train("killed"))
