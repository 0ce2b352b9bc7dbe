"""Metrics of a run in MLflow: a server, or a database file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from rec2pm_jax.errors import UserError
from rec2pm_jax.training.observers import RunInfo
from rec2pm_jax.training.trackers.tracked_run import TrackedRun, flatten_config

DEFAULT_EXPERIMENT = "rec2pm_jax"
_LONGEST_PARAM = 500  # characters; servers refuse longer ones


class MlflowTracker:
    """A run of MLflow for each workdir, with the configuration as its parameters."""

    def __init__(self, uri: str = "") -> None:
        """Keep the address; `start` connects.

        Args:
          uri: of the tracking server or database; empty: that of `MLFLOW_TRACKING_URI`, or else
            MLflow's own default.
        """
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        self._client: MlflowClient | None = None
        self._run: TrackedRun | None = None
        self._status = "KILLED"  # unless `finish` is called

    def start(self, run: RunInfo) -> None:
        """Continue the run of the workdir, or create one; see `Tracker.start`.

        Raises:
          UserError: the server does not answer, or has no such run any more.
        """
        self._status = "KILLED"
        self._run = TrackedRun(run.workdir, "mlflow", self._uri, run.step)
        try:
            client = MlflowClient(tracking_uri=self._uri or None)
            if not self._run.run_id:
                self._run.begin(self._create(client, run))
            else:
                client.update_run(self._run.run_id, status="RUNNING")
        except (MlflowException, OSError) as error:
            hint = f" It is named in {self._run.path}; remove that file to begin a new run."
            raise UserError(
                f"MLflow at {self._uri or 'its default place'}: {_first_line(error)}"
                f"{hint if self._run.run_id else ''}"
            ) from error
        self._client = client

    def write(
        self,
        stream: str,
        step: int,
        values: Mapping[str, float],
        volatile: Mapping[str, float | None] | None = None,
    ) -> None:
        """Send a row; see `MetricWriter.write`.

        Raises:
          UserError: the server does not take it. Training ends; its last checkpoint stands.
        """
        assert self._client is not None and self._run is not None, "start() comes first"
        if not self._run.is_new(stream, step):
            return
        now = int(1000 * time.time())
        metrics = [
            Metric(f"{stream}/{name.replace('@', '_')}", float(value), now, step)
            for name, value in {**values, **(volatile or {})}.items()
            if value is not None
        ]
        try:
            self._client.log_batch(self._run.run_id, metrics=metrics)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"MLflow at {self._uri or 'its default place'} does not take the row of step {step}: "
                f"{_first_line(error)} The same command continues from the last checkpoint."
            ) from error
        self._run.mark_sent(stream, step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Note the summary as tags; see `Tracker.finish`."""
        assert self._client is not None and self._run is not None, "start() comes first"
        self._status = "FINISHED"
        for name in ("stopped_by", "best_step"):
            self._client.set_tag(self._run.run_id, name, str(summary[name]))

    def close(self) -> None:
        """End the run: FINISHED if it is complete, else KILLED."""
        if self._client is not None and self._run is not None:
            self._client.set_terminated(self._run.run_id, self._status)
        self._client = None

    def _create(self, client: MlflowClient, run: RunInfo) -> str:
        """Create a run and return its id."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else client.create_experiment(name)
        run_id = client.create_run(number, run_name=run.workdir.name).info.run_id
        config = flatten_config(run.identity["config"])
        params = [Param(field, str(value)[:_LONGEST_PARAM]) for field, value in config.items()]
        facts = ("config_hash", "data_hash", "data_path", "git_commit")
        tags = [RunTag(name, str(run.identity[name])) for name in facts]
        tags.append(RunTag("workdir", str(run.workdir.absolute())))
        client.log_batch(run_id, params=params, tags=tags)
        return run_id


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300] + "."
