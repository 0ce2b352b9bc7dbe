"""A run of a suite as a child process on its own core."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from launch.benchmarks.processes import PinnedProcess
from launch.experiments.run import Run
from rec2pm_jax.errors import UserError


class Worker(PinnedProcess):
    """The process of one run, started by the constructor.

    Attributes:
      run: the run.
    """

    def __init__(self, suite: str, run: Run, core: int | None, data: str, workdir: Path):
        self.run = run
        self._directory = workdir / run.name
        command = [
            *(sys.executable, "-m", "launch.experiments.run_one"),
            *(f"--suite={suite}", f"--run={run.name}", f"--data={data}", f"--workdir={workdir}"),
        ]
        super().__init__(command, self._directory / "log.txt", core)

    def count_steps(self) -> int:
        """Return how many steps the run has logged."""
        return count_steps(self._directory)

    def check(self) -> None:
        """Raise UserError if the finished process failed."""
        if self.process.returncode:
            raise UserError(
                f"{self.run.name} failed (exit code {self.process.returncode}): "
                f"{self.last_line()} The whole log: {self.log}"
            )


def count_steps(workdir: Path) -> int:
    """Return how many steps the training run of a workdir has logged."""
    try:
        last = (workdir / "train" / "train.jsonl").read_text().splitlines()[-1]
        return json.loads(last)["step"]
    except (OSError, IndexError, ValueError):  # no row yet, or a row half written
        return 0
