"""What a run remembers besides its arrays: counters, metrics since the last log row, and times."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from rec2pm_jax.config import Config

TARGET = "ndcg@10"  # the validation metric that picks the best checkpoint


@dataclasses.dataclass
class Progress:
    """Bookkeeping that a checkpoint carries, so that a resumed run repeats an undisturbed one.

    Checkpoints store these fields by name.

    Attributes:
      step: number of updates applied.
      best_step: step of the best checkpoint; None before the first validation.
      best: validation metrics of the best checkpoint; empty before the first validation.
      last: newest validation metrics.
      stale: number of validations since the best one.
      window_sums: sums of step metrics since the last row of the train log.
      window_steps: number of steps in these sums.
      means: step metrics averaged over the window before this one.
      wall_s: seconds of training, validation and saving, over all restarts.
      timed_s: seconds spent in steps, without the first step of each start (it compiles).
      timed_tokens: next-item targets of these steps.
    """

    step: int = 0
    best_step: int | None = None
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    last: dict[str, float] = dataclasses.field(default_factory=dict)
    stale: int = 0
    window_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    window_steps: int = 0
    means: dict[str, float] = dataclasses.field(default_factory=dict)
    wall_s: float = 0.0
    timed_s: float = 0.0
    timed_tokens: float = 0.0

    def add_step(self, metrics: Mapping[str, float]) -> None:
        """Add one step's metrics to the window."""
        for name, value in metrics.items():
            self.window_sums[name] = self.window_sums.get(name, 0.0) + value
        self.window_steps += 1

    def close_window(self) -> dict[str, float]:
        """Return the means over the window, and begin a new one."""
        self.means = {name: value / self.window_steps for name, value in self.window_sums.items()}
        self.window_sums, self.window_steps = {}, 0
        return self.means

    def add_validation(self, metrics: Mapping[str, float]) -> bool:
        """Record the metrics of a validation at `step`; return whether it is the best so far."""
        self.last = dict(metrics)
        if self.best_step is not None and metrics[TARGET] <= self.best[TARGET]:
            self.stale += 1
            return False
        self.best_step, self.best, self.stale = self.step, dict(metrics), 0
        return True

    def forget_validations(self) -> None:
        """Forget all validations, which were on other data: the next one is the best so far."""
        self.best_step, self.best, self.last, self.stale = None, {}, {}, 0

    def stop_reason(self, config: Config) -> str | None:
        """Return why training is over, "steps" or "patience"; None if it is not."""
        if self.step >= config.train.steps:
            return "steps"
        return "patience" if self.stale >= config.train.patience else None

    @property
    def tokens_per_s(self) -> float | None:
        """Next-item targets per second of training; None before the second step."""
        return self.timed_tokens / self.timed_s if self.timed_s else None


class Stopwatch:
    """Keeps the times of a `Progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._wall = self._lap = time.perf_counter()
        self._timing = False

    def add_step(self, tokens: float) -> None:
        """Count the time since the last call as training, unless it contains a compilation."""
        now = time.perf_counter()
        if self._timing:
            self._progress.timed_s += now - self._lap
            self._progress.timed_tokens += tokens
        self._lap, self._timing = now, True

    def exclude_pause(self) -> None:
        """Leave the time since the last call (validation, saving) out of the training time."""
        self._lap = time.perf_counter()

    def update_wall(self) -> None:
        """Add the time since the last call to the wall time."""
        now = time.perf_counter()
        self._progress.wall_s += now - self._wall
        self._wall = now
