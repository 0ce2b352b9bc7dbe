"""What a run tells its callers: callbacks at validations and checkpoints, and trackers of metrics."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from rec2pm_jax.config import Config
from rec2pm_jax.training.metric_writer import MetricWriter
from rec2pm_jax.typing import Params

EventKind = Literal["validation", "checkpoint"]


@dataclasses.dataclass(frozen=True)
class TrainingEvent:
    """What a callback is told.

    Attributes:
      kind: "validation", after metrics were computed, or "checkpoint", after one was written.
      step: number of updates applied.
      metrics: of the newest validation, fractions of 1; empty before the first one.
      best_step: step of the best validation; None before the first one.
      best: metrics of the best validation.
      config: the configuration of the run.
      workdir: directory of the run.
      params: the parameters, for kind "validation" only. They are valid during the call: copy them
        with `jax.device_get` to keep them.
      request_stop: a function; after its call the run saves and raises `preemption.Preempted`.
    """

    kind: EventKind
    step: int
    metrics: Mapping[str, float]
    best_step: int | None
    best: Mapping[str, float]
    config: Config
    workdir: Path
    params: Params | None = None
    request_stop: Callable[[], None] = lambda: None


Callback = Callable[[TrainingEvent], None]


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What identifies a run for a tracker.

    Attributes:
      workdir: directory of the run; trackers keep the id of their run in its folder `train`.
      step: step of the checkpoint that the run continues from; 0 for a new run.
      identity: configuration, hashes, commit and data, as a checkpoint stores them.
    """

    workdir: Path
    step: int
    identity: Mapping[str, Any]


class Tracker(MetricWriter, Protocol):
    """A metric writer that shows runs elsewhere. Only process 0 of a job has trackers.

    The calls come in this order: `start`, any number of `write`, `finish` if the run is complete,
    `close` in any case.
    """

    def start(self, run: RunInfo) -> None:
        """Open the tracker's run: that of the workdir if there is one, else a new one."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Receive the summary of a complete run."""


class Observers:
    """The callbacks and trackers of a run; `loop.train_and_evaluate` takes them.

    Errors of callbacks and trackers end the run: they are not caught. The last checkpoint stands.
    """

    def __init__(
        self, callbacks: Sequence[Callback] = (), trackers: Sequence[Tracker] = ()
    ) -> None:
        """Keep what is called.

        Args:
          callbacks: functions of a `TrainingEvent`, called in this order, in every process of a job.
          trackers: further writers of metrics, used in process 0.
        """
        self._callbacks, self._trackers = tuple(callbacks), tuple(trackers)
        self.stop_requested = False

    def start(self, run: RunInfo, is_main: bool) -> None:
        """Begin a run; other processes than the first drop their trackers."""
        self.stop_requested = False
        if not is_main:
            self._trackers = ()
        for tracker in self._trackers:
            tracker.start(run)

    def write(
        self,
        stream: str,
        step: int,
        values: Mapping[str, float],
        volatile: Mapping[str, float | None] | None = None,
    ) -> None:
        """Write a row to every tracker; arguments as in `MetricWriter.write`."""
        for tracker in self._trackers:
            tracker.write(stream, step, values, volatile)

    def notify(self, event: TrainingEvent) -> None:
        """Call every callback."""
        event = dataclasses.replace(event, request_stop=self._request_stop)
        for callback in self._callbacks:
            callback(event)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hand the summary of a complete run to every tracker."""
        for tracker in self._trackers:
            tracker.finish(summary)

    def close(self) -> None:
        """Close every tracker, also after an error of one."""
        with contextlib.ExitStack() as stack:
            for tracker in self._trackers:
                stack.callback(tracker.close)

    def _request_stop(self) -> None:
        self.stop_requested = True
