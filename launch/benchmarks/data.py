"""--suite=data: datasets that do not fit in memory: opened, fed, trained on and killed.

A dataset of each size is written first (`large_data.py`), which is not timed. It stays in
`--directory`, where a later start finds it. What opens and feeds runs in fresh processes
(`data_child.py`). Then two processes train SASRec of width 16 with a sharded table. Half-way both are
killed with SIGKILL and started again.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.benchmarks.data_child import BATCH, MEASURES, WINDOW, read_status
from launch.benchmarks.large_data import Sizes, write_dataset
from rec2pm_jax.data.info import read_info
from rec2pm_jax.errors import UserError

SIZES = (
    Sizes(events=10_000_000, items=200_000, users=100_000),
    Sizes(events=50_000_000, items=20_000_000, users=1_200_000),
    Sizes(events=1_000_000_000, items=20_000_000, users=10_000_000),
)
SMOKE_SIZES = (Sizes(events=4_000, items=300, users=100),)
STEPS, SMOKE_STEPS = 100, 8
_PROCESSES = 2


def measure_rows(smoke: bool, only: str = "", directory: str = "") -> Iterator[dict[str, Any]]:
    """Yield one row per size.

    Args:
      smoke: one tiny size.
      only: a regular expression that names of rows match.
      directory: where datasets stay; empty: a temporary place.
    """
    for sizes in SMOKE_SIZES if smoke else SIZES:
        name = f"data/{sizes.events}/sasrec"
        if re.search(only, name):
            with tempfile.TemporaryDirectory() as work:
                place = Path(directory or work)
                yield {"name": name} | _measure(place, sizes, SMOKE_STEPS if smoke else STEPS)


def _measure(place: Path, sizes: Sizes, steps: int) -> dict[str, Any]:
    data = place / f"{sizes.events}-{sizes.items}-{sizes.users}"
    write_dataset(data, sizes)
    row: dict[str, Any] = {n: read_info(data)[n] for n in ("events", "items", "users")}
    row["disk_bytes"] = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
    for measure in MEASURES:
        command = [sys.executable, "-m", "launch.benchmarks.data_child", measure, str(data)]
        row |= json.loads(_run(command))
    with tempfile.TemporaryDirectory(dir=place) as runs:
        row |= _train(data, Path(runs) / "run", steps)
    return row | {"windows_ratio": round(row["windows_per_s"] / row["step_windows_per_s"], 1)}


def _train(data: Path, workdir: Path, steps: int) -> dict[str, Any]:
    """Train on two processes, kill both half-way, and train to the end."""
    first = _Job(data, workdir, steps)
    to_first_step = first.wait(1)
    first.wait(steps // 2)
    first.kill()
    second = _Job(data, workdir, steps)
    resumed = second.wait(first.reached + 1)  # the log still has the steps before
    trained = second.wait(steps) - resumed
    second.finish()
    rows = [json.loads(line) for line in second.log.read_text().splitlines()]
    return {
        "processes": _PROCESSES,
        "steps": len({row["step"] for row in rows}),
        "first_step_s": round(to_first_step, 1),
        "resumed_step_s": round(resumed, 1),
        "resumed_at": first.saved,
        "step_windows_per_s": round(BATCH * (steps - first.reached - 1) / trained, 1),
        "train_peak_rss_bytes": max(first.peak, second.peak),
        "train_anonymous_bytes": max(first.anonymous, second.anonymous),
    }


def _one_device_each() -> dict[str, str]:
    """Return the environment without simulated devices."""
    given = os.environ.get("XLA_FLAGS", "")
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", given)
    return os.environ | {"XLA_FLAGS": flags}


class _Job:
    """Both processes of a training run."""

    def __init__(self, data: Path, workdir: Path, steps: int):
        self.log = workdir / "train" / "train.jsonl"
        self.peak = self.anonymous = 0
        self._every = max(steps // 5, 1)
        self._began, self.saved, self.reached = time.perf_counter(), 0, 0
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        config = {
            "data.segment": WINDOW[0],
            "data.segments": WINDOW[1],
            "model.layers": 1,
            "model.dim": 16,
            "model.table": "sharded",
            "loss.negatives": 128,
            "optim.table_learning_rate": 0.01,
            "train.batch_size": BATCH,
            "train.steps": steps,
            "train.checkpoint_every": self._every,
            "train.eval_every": steps,
            "train.eval_users": 20,
            "train.log_every": 1,
            "compute.devices": 0,
        }
        flags = {"config": "base", "data": data, "workdir": workdir, "num_processes": _PROCESSES}
        flags |= {"coordinator_address": f"localhost:{port}"}
        flags |= {f"config.{name}": value for name, value in config.items()}
        command = [sys.executable, "-m", "launch.train"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        workdir.mkdir(exist_ok=True)
        self._output = workdir.parent / "output.txt"
        with self._output.open("w") as file:
            self._processes = [
                subprocess.Popen(
                    [*command, f"--process_id={i}"],
                    stdout=file,
                    stderr=file,
                    env=_one_device_each(),
                )
                for i in range(_PROCESSES)
            ]

    def wait(self, step: int) -> float:
        """Wait until the log has a step, and return the seconds since the start."""
        while self._last_step() < step:
            if any(process.poll() not in (None, 0) for process in self._processes):
                self.kill()
                raise UserError(f"launch.train failed: {self._output.read_text()[-3000:]}")
            for process in self._processes:
                found = read_status(process.pid)
                self.peak = max(self.peak, found.get("peak_rss_bytes", 0))
                self.anonymous = max(self.anonymous, found.get("anonymous_bytes", 0))
            time.sleep(0.05)
        return time.perf_counter() - self._began

    def kill(self) -> None:
        """End both with SIGKILL; sets `saved`, the newest checkpoint, and `reached`, the last step."""
        for process in self._processes:
            process.kill()
            process.wait()
        saved = (self.log.parent.parent / "checkpoints").glob("[0-9]*")
        self.saved = max((int(path.name) for path in saved if path.name.isdecimal()), default=0)
        self.reached = self._last_step()

    def finish(self) -> None:
        """Wait for both to end."""
        if any(process.wait() for process in self._processes):
            raise UserError(f"launch.train failed: {self._output.read_text()[-3000:]}")

    def _last_step(self) -> int:
        if not self.log.is_file():
            return 0
        lines = self.log.read_text().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0


def _run(command: list[str]) -> str:
    """Return what a command prints last."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]
