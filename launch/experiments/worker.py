"""A run of a suite as a child process on its own core."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from launch.benchmarks import processes
from launch.experiments.run import Run
from rec2pm_jax.errors import UserError

_STOP_S = 30.0  # how long a run may take to save and exit


class Worker:
    """The process of one run, started by the constructor.

    Attributes:
      run: the run.
      core: the core that the process is pinned to; None: all of them.
      process: the child.
      log: file with its output.
    """

    def __init__(self, suite: str, run: Run, core: int | None, data: str, workdir: Path):
        self.run, self.core = run, core
        self._directory = workdir / run.name
        self._directory.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "launch.experiments.run_one"),
            *(f"--suite={suite}", f"--run={run.name}", f"--data={data}", f"--workdir={workdir}"),
        ]
        self.log = self._directory / "log.txt"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=processes.make_environment("tuned", single_thread=core is not None),
            )
        if core is not None:
            processes.pin(self.process.pid, {core})

    def count_steps(self) -> int:
        """Return how many steps the run has logged."""
        try:
            last = (self._directory / "train" / "train.jsonl").read_text().splitlines()[-1]
            return json.loads(last)["step"]
        except (OSError, IndexError, ValueError):  # no row yet, or a row half written
            return 0

    def check(self) -> None:
        """Raise UserError if the finished process failed."""
        if self.process.returncode:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(
                f"{self.run.name} failed (exit code {self.process.returncode}): "
                f"{' '.join(tail)[-300:]} The whole log: {self.log}"
            )

    def stop(self) -> None:
        """End the process after it has saved a checkpoint, or kill it if that takes too long."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
