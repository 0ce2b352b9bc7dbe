"""SIGTERM, which clouds and schedulers send before they take a machine: when to save and stop."""

from __future__ import annotations

import signal

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was asked to stop, has saved, and continues with the same command."""


class Preemption:
    """Whether this job was asked to stop.

    In a job of several processes JAX's service passes on a SIGTERM that any of them got, and has all
    of them stop after the same step. A single process listens itself while the object is open.
    """

    def __init__(self):
        self._asked = False
        self._before = None
        if jax.process_count() == 1:
            try:
                self._before = signal.signal(signal.SIGTERM, self._ask)
            except ValueError:  # not the main thread: somebody else's process, and their signals
                pass

    def reached(self, step: int) -> bool:
        """Called after every step, by every process with the same number: stop now?"""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def close(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _ask(self, *_) -> None:
        self._asked = True
