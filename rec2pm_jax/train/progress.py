"""What a run knows about itself besides its arrays, and how it shows that to people."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from tqdm import tqdm

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.typing import Params

TARGET = "ndcg@10"  # the validation metric that picks the best checkpoint


@dataclasses.dataclass
class Progress:
    """Bookkeeping that a checkpoint carries, so that a resumed run repeats an undisturbed one.

    Attributes:
      step: updates applied.
      best_step, best: step and validation metrics of the best checkpoint; None and {} before one.
      last: newest validation metrics.
      stale: validations since the best one.
      window_sums, window_steps: step metrics since the last row of the train log.
      means: step metrics averaged over the window before this one.
      wall_s: seconds of training, validation and saving, over all restarts.
      timed_s, timed_tokens: the part spent in steps, without the first of each start (it compiles).
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

    def add(self, metrics: Mapping[str, float]) -> None:
        """Adds one step's metrics to the window."""
        for name, value in metrics.items():
            self.window_sums[name] = self.window_sums.get(name, 0.0) + value
        self.window_steps += 1

    def close_window(self) -> dict[str, float]:
        """Returns the means over the window, which starts anew."""
        self.means = {name: value / self.window_steps for name, value in self.window_sums.items()}
        self.window_sums, self.window_steps = {}, 0
        return self.means

    def validated(self, metrics: Mapping[str, float]) -> bool:
        """Takes in a validation at `step`; returns whether it is the best so far."""
        self.last = dict(metrics)
        if self.best_step is not None and metrics[TARGET] <= self.best[TARGET]:
            self.stale += 1
            return False
        self.best_step, self.best, self.stale = self.step, dict(metrics), 0
        return True

    def forget_validations(self) -> None:
        """The next validation is the best so far: those before were on other data."""
        self.best_step, self.best, self.last, self.stale = None, {}, {}, 0

    def stop_reason(self, config: Config) -> str | None:
        """Why training is over, or None: `steps` reached or `patience` exhausted."""
        if self.step >= config.train.steps:
            return "steps"
        return "patience" if self.stale >= config.train.patience else None

    @property
    def tokens_per_s(self) -> float | None:
        return self.timed_tokens / self.timed_s if self.timed_s else None


class Stopwatch:
    """Fills the clock fields of a `Progress`."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._wall = self._lap = time.perf_counter()
        self._timing = False

    def steps_done(self, tokens: float) -> None:
        """Books the time since the last call as training, unless it contains a compilation."""
        now = time.perf_counter()
        if self._timing:
            self._progress.timed_s += now - self._lap
            self._progress.timed_tokens += tokens
        self._lap, self._timing = now, True

    def skip(self) -> None:
        """Leaves the time since the last call (validation, saving) out of the training time."""
        self._lap = time.perf_counter()

    def book_wall(self) -> None:
        now = time.perf_counter()
        self._progress.wall_s += now - self._wall
        self._wall = now


class ProgressLine:
    """One line with step, ETA, tokens/s, the losses apart and the last validation."""

    def __init__(self, total: int, step: int, show: bool):
        # Redrawn rarely where the output is a file.
        interval = 0.5 if sys.stderr.isatty() else 30
        self._bar = tqdm(
            total=total, initial=step, unit="step", disable=not show, mininterval=interval
        )

    def advance(self) -> None:
        self._bar.update()

    def describe(self, progress: Progress) -> None:
        losses = {k: v for k, v in progress.means.items() if k.startswith("loss/")}
        parts = [f"{name.removeprefix('loss/')} {value:.4f}" for name, value in losses.items()]
        if progress.tokens_per_s:
            parts.insert(0, f"{progress.tokens_per_s:,.0f} tokens/s")
        if progress.last:
            parts.append(f"val {TARGET} {progress.last[TARGET]:.4f}")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)

    def close(self) -> None:
        self._bar.close()


def parameter_table(params: Params) -> str:
    """One row per parameter (name, shape, dtype, count) and the total; shapes suffice."""
    rows = [
        (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            "x".join(map(str, leaf.shape)) or "scalar",
            str(leaf.dtype),
            leaf.size,
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    rows.append(("total", "", "", sum(size for *_, size in rows)))
    width = max(len(name) for name, *_ in rows)
    return "\n".join(
        f"{name:<{width}}  {shape:>14}  {dtype:<8}  {count:>12,}"
        for name, shape, dtype, count in rows
    )


def setting_table(config: Config, facts: Mapping[str, Any]) -> str:
    """The configuration, one line per section, under `facts` about the run."""
    rows = {name: str(value) for name, value in facts.items()}
    for section, fields in to_dict(config).items():
        rows[section] = " ".join(f"{name}={value}" for name, value in fields.items())
    return "\n".join(f"{name:<10} {value}" for name, value in rows.items())
