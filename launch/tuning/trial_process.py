"""A run of a search: `launch.train` on its own core, with a preset and a directory of its own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from launch.benchmarks.processes import PinnedProcess
from rec2pm_jax.training.progress import TARGET

PRESET = "preset.py"


class TrialProcess(PinnedProcess):
    """The training process of a trial, started by the constructor.

    Attributes:
      number: of the trial.
      directory: workdir of the run, which holds its preset; trials of the same run share it.
      pruned: whether it was told to stop at a rung.
    """

    def __init__(self, number: int, directory: Path, core: int | None, flags: list[str]) -> None:
        """Start or resume a run.

        Args:
          number: of the trial.
          directory: see above.
          core: the core to pin it to; None: all of them.
          flags: further flags of `launch.train`.
        """
        self.number, self.directory, self.pruned = number, directory, False
        self._began = time.time()
        command = [
            *(sys.executable, "-m", "launch.train", f"--config={directory / PRESET}"),
            *(f"--workdir={directory}", *flags),
        ]
        super().__init__(command, directory / "log.txt", core)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.time() - self._began


def read_curve(workdir: Path) -> dict[int, float]:
    """Return the best validation NDCG@10 so far, a fraction of 1, by step; {} before the first.

    Args:
      workdir: of a training run.
    """
    try:
        lines = (workdir / "train" / "validation.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    curve: dict[int, float] = {}
    best = 0.0
    for line in lines:
        if line.endswith("\n"):  # else it is half written
            row = json.loads(line)
            best = max(best, row[TARGET])
            curve[row["step"]] = best
    return curve
