"""Metrics of a run in Weights & Biases, online or offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb

from rec2pm_jax.errors import UserError
from rec2pm_jax.training.observers import RunInfo
from rec2pm_jax.training.trackers.tracked_run import TrackedRun, flatten_config

DEFAULT_PROJECT = "rec2pm_jax"
_INCOMPLETE = 1  # exit code of a run that was stopped


class WandbTracker:
    """A run of Weights & Biases for each workdir, with the configuration as its config.

    `WANDB_MODE=offline` writes under the workdir, for `wandb sync` later.
    """

    def __init__(self, place: str = "") -> None:
        """Keep the project; `start` connects.

        Args:
          place: PROJECT or ENTITY/PROJECT; empty: `DEFAULT_PROJECT`.
        """
        self._place = place or DEFAULT_PROJECT
        self._run: Any = None  # of wandb
        self._tracked: TrackedRun | None = None
        self._exit_code = _INCOMPLETE

    def start(self, run: RunInfo) -> None:
        """Continue the run of the workdir, or create one; see `Tracker.start`.

        Raises:
          UserError: Weights & Biases refuses, for example without a login.
        """
        self._exit_code = _INCOMPLETE
        self._tracked = TrackedRun(run.workdir, "wandb", self._place, run.step)
        entity, slash, project = self._place.rpartition("/")
        facts = {name: value for name, value in run.identity.items() if name != "config"}
        try:
            self._run = wandb.init(
                entity=entity if slash else None,
                project=project,
                name=run.workdir.name,
                id=self._tracked.run_id or None,
                resume="allow",
                dir=run.workdir / "train",
                config=flatten_config(run.identity["config"]) | facts,
                allow_val_change=True,
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases: {' '.join(str(error).split())[:300]} "
                "(WANDB_MODE=offline needs no account)"
            ) from error
        # The steps of wandb must grow; those of a resumed run begin again at its checkpoint.
        self._run.define_metric("*", step_metric="step")
        self._tracked.begin(self._run.id)

    def write(
        self,
        stream: str,
        step: int,
        values: Mapping[str, float],
        volatile: Mapping[str, float | None] | None = None,
    ) -> None:
        """Send a row; see `MetricWriter.write`."""
        assert self._tracked is not None, "start() comes first"
        if not self._tracked.is_new(stream, step):
            return
        row = {
            f"{stream}/{name}": value
            for name, value in {**values, **(volatile or {})}.items()
            if value is not None
        }
        self._run.log({"step": step, **row})
        self._tracked.mark_sent(stream, step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Note the summary of the run; see `Tracker.finish`."""
        self._exit_code = 0
        self._run.summary.update({"stopped_by": summary["stopped_by"], "best": summary["best"]})

    def close(self) -> None:
        """End the run: as finished if it is complete, else as failed."""
        if self._run is not None:
            self._run.finish(exit_code=self._exit_code)
        self._run = None
