"""A trace of a few training steps, for XProf, TensorBoard or Perfetto."""

from __future__ import annotations

import contextlib

import jax

WARM_UP = 3  # steps of a start that are left out: the first compiles, and caches fill
STEPS = 3


class StepTrace:
    """Traces STEPS steps after the WARM_UP of this start into `directory`; nothing where it is empty.

    On a CPU the trace names every operation of the compiled program, so a little of the time of a
    traced step is the tracing itself.
    """

    def __init__(self, directory: str = ""):
        self.directory, self.done, self.active = directory, 0, False

    @contextlib.contextmanager
    def step(self, number: int):
        """Around the call of a step; yields a function that is given the step's results."""
        if self.directory and self.done == WARM_UP:
            jax.profiler.start_trace(self.directory, create_perfetto_trace=True)
            self.active = True
        results = []
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield results.append
            if self.active:  # each step's work within its own annotation
                jax.block_until_ready(results)
        self.done += 1
        if self.done == WARM_UP + STEPS:
            self.close()

    def close(self) -> None:
        """Writes a trace that has begun."""
        if self.active:
            self.active = False
            jax.profiler.stop_trace()

    @property
    def summary(self) -> str:
        """What became of the wish for a trace, one line; empty if there was none."""
        if not self.directory:
            return ""
        if self.done <= WARM_UP:
            return f"no profile: it begins after {WARM_UP} steps, and only {self.done} were left"
        traced = min(self.done - WARM_UP, STEPS)
        return f"profile of {traced} steps in {self.directory}"
