"""Record a trace of a few training steps, for XProf, TensorBoard or Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from rec2pm_jax.os_errors import write_error

WARM_UP = 3  # steps of a start that are left out: the first one compiles, and caches fill
STEPS = 3


class StepTrace:
    """Traces STEPS steps, after the first WARM_UP steps of this start.

    On a CPU the trace names every operation of the compiled program, so a little of the time of a
    traced step is the tracing itself.
    """

    def __init__(self, directory: str = "") -> None:
        """Trace into `directory`, which is made now; an empty name means no trace.

        Raises:
          UserError: the directory cannot be made, which JAX would say after the traced steps.
        """
        if directory:
            try:
                Path(directory).mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError) as error:
                raise write_error(f"--profile={directory}", error) from error
        self.directory, self.done, self.active = directory, 0, False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[Callable[[Any], None]]:
        """Surround the call of step `number`; yields a function that takes the step's results."""
        if self.directory and self.done == WARM_UP:
            jax.profiler.start_trace(self.directory, create_perfetto_trace=True)
            self.active = True
        results: list[Any] = []
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield results.append
            if self.active:  # each step's work within its own annotation
                jax.block_until_ready(results)
        self.done += 1
        if self.done == WARM_UP + STEPS:
            self.close()

    def close(self) -> None:
        """Write the trace if one is being recorded; UserError if it cannot be written."""
        if self.active:
            self.active = False
            try:
                jax.profiler.stop_trace()
            except jax.errors.JaxRuntimeError as error:  # of its files
                raise write_error(f"--profile={self.directory}", error) from error

    @property
    def summary(self) -> str:
        """One line that says what was traced; empty if no trace was asked for."""
        if not self.directory:
            return ""
        if self.done <= WARM_UP:
            return f"no profile: it begins after {WARM_UP} steps, and only {self.done} were left"
        traced = min(self.done - WARM_UP, STEPS)
        return f"profile of {traced} steps in {self.directory}"
