"""React to SIGTERM, which clouds and schedulers send before they take a machine: save and stop."""

from __future__ import annotations

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_PREEMPTED = 75  # exit code of a run that was asked to stop, has saved, and can be continued


class Preempted(Exception):
    """The run was asked to stop, has saved, and continues with the same command."""


class Preemption:
    """Tells whether this job was asked to stop.

    In a job of several processes JAX's service passes on a SIGTERM that any of them received, and
    all of them stop after the same step. A single process listens while this object is open.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous_handler: Any = None
        if jax.process_count() == 1:
            try:
                self._previous_handler = signal.signal(signal.SIGTERM, self._ask)
            except ValueError:  # not the main thread, so signals are not ours to handle
                pass

    def reached(self, step: int) -> bool:
        """Return whether to stop now; every process calls it after every step with its number."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def close(self) -> None:
        """Restore the signal handler that was there."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None

    def _ask(self, *_: object) -> None:
        self._asked = True
