"""One training run in this process: its state, and what happens after each step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.devices import check_platform, describe_devices
from rec2pm_jax.json_file import write_json
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import config_hash
from rec2pm_jax.nn.item_features import ItemContent, add_content
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.training.checkpoint import VECTOR_LENGTH, Checkpoints
from rec2pm_jax.training.console import ProgressBar, format_parameters, format_settings
from rec2pm_jax.training.metric_writer import LogFiles
from rec2pm_jax.training.new_items import describe_growth, grow_state, resize_abstract
from rec2pm_jax.training.observers import EventKind, Observers, RunInfo, TrainingEvent
from rec2pm_jax.training.optimizer import make_schedule
from rec2pm_jax.training.partition import local_replica, make_partition
from rec2pm_jax.training.preemption import Preempted, Preemption
from rec2pm_jax.training.progress import TARGET, Progress, Stopwatch
from rec2pm_jax.training.run_checks import check_same_run
from rec2pm_jax.training.step import Metrics
from rec2pm_jax.training.step_check import check_step
from rec2pm_jax.training.step_trace import StepTrace
from rec2pm_jax.typing import Params

EvaluateFn = Callable[[Params], Mapping[str, float]]
Summary = dict[str, Any]


class TrainingData(NamedTuple):
    """Batches, and what identifies the dataset they come from.

    Attributes:
      batches: an endless iterator of batches as `Method.loss` takes them. It is moved to the
        position of the restored checkpoint.
      content_hash: names the data; a workdir remembers it.
      path: directory of the data, remembered for commands that are given only the workdir.
      grown_from: content hashes of the data before something was appended to them.
      content: of the items, for a model that reads it.
    """

    batches: grain.DatasetIterator
    content_hash: str
    path: str | None = None
    grown_from: Collection[str] = ()
    content: ItemContent | None = None


class TrainingRun:
    """A run: start it, take steps until `stop_reason`, finish it, and close it in any case."""

    def __init__(
        self,
        config: Config,
        data: TrainingData,
        method: Method,
        workdir: Path,
        evaluate_fn: EvaluateFn,
        profile: str = "",
        observers: Observers | None = None,
    ) -> None:
        """Prepare a run; arguments as in `loop.train_on`."""
        self.config, self.data, self.method = config, data, method
        self.workdir, self.evaluate_fn = workdir, evaluate_fn
        check_platform(config.compute)
        self._trace = StepTrace(profile)
        self._is_main = jax.process_index() == 0
        self._schedule = make_schedule(config.optim, config.train.steps)
        self._partition = make_partition(config, method, data.content)
        self._checkpoints = Checkpoints(workdir)
        self.progress = Progress()
        self._preemption = Preemption()
        self._pending: tuple[int, Metrics] | None = None  # (step, metrics still being computed)
        self._writer: LogFiles | None = None
        self._observers = observers or Observers()
        self._bar = ProgressBar(config.train.steps, 0, show=False)  # shown from `start` on

    @property
    def stop_reason(self) -> str | None:
        """Why training is over, "steps" or "patience"; None if it is not."""
        return self.progress.stop_reason(self.config)

    def start(self) -> None:
        """Restore or initialise the state, open the logs, and print what is being trained."""
        data, method, partition = self.data, self.method, self._partition
        restored = self._checkpoints.restore(
            lambda meta: resize_abstract(partition.abstract, method, meta["num_items"]),
            data.batches,
            check=lambda meta: check_same_run(
                meta, self.config, data.content_hash, self.workdir, data.grown_from
            ),
        )
        meta = None if restored is None else restored.meta
        grown = meta is not None and meta["data_hash"] != data.content_hash
        if meta is not None:
            self.progress = Progress(**meta["progress"])
        step = self.progress.step
        self._print_settings()
        if restored is None:
            self._state = partition.init()
        else:
            state = restored.state
            if grown:
                self._print(describe_growth(restored.meta, data.content_hash, method.num_items))
                state = grow_state(state, method, restored.meta["num_items"])
                self.progress.forget_validations()
            self._state = partition.place(state)
        if self._is_main:
            positions = {} if meta is None else meta["log_positions"]
            self._writer = LogFiles(self.workdir / "train", step, positions)
        self._observers.start(RunInfo(self.workdir, step, self._identity()), self._is_main)
        self._bar = ProgressBar(self.config.train.steps, step, show=self._is_main)
        self._stopwatch = Stopwatch(self.progress)
        if grown:
            self._validate()  # the checkpoint of this step is the one to beat

    def take_step(self) -> None:
        """Take one step, and write the row, the validation and the checkpoint scheduled after it.

        Raises:
          UserError: a step was not applied.
          Preempted: the run was asked to stop, and has saved.
        """
        config, progress = self.config.train, self.progress
        with self._trace.step(progress.step) as results:
            self._state, metrics = self._partition.step(self._state, next(self.data.batches))
            results(metrics)
        progress.step += 1
        self._collect_pending()  # of the step before: ready while this one is computed
        self._pending = (progress.step, metrics)
        self._bar.advance()

        last = progress.step >= config.steps
        log = last or progress.step % config.log_every == 0
        validate = last or progress.step % config.eval_every == 0
        save = last or progress.step % config.checkpoint_every == 0
        stop = self._preemption.reached(progress.step) and not last
        if not (log or validate or save or stop):
            return
        self._collect_pending()
        if log:
            self._log()
        if validate:
            better = self._validate()
            save = save or better or self.stop_reason is not None
        asked = self._observers.stop_requested
        if save or stop or asked:
            self._save()
        if stop or (self._observers.stop_requested and self.stop_reason is None):
            cause = "SIGTERM" if stop else "a callback"
            raise Preempted(
                f"stopped by {cause} after step {progress.step}, which is saved; the same command "
                "continues from there"
            )
        self._bar.describe(progress)
        self._stopwatch.exclude_pause()

    def finish(self) -> Summary:
        """Write the summary, and return it. A complete run that is started again does only this."""
        progress, path = self.progress, self.workdir / "train" / "summary.json"
        summary = {
            "stopped_by": self.stop_reason,
            "steps": progress.step,
            "best_step": progress.best_step,
            "best": progress.best,
            "wall_s": progress.wall_s,
            "tokens_per_s": progress.tokens_per_s,
            "device": jax.devices()[0].device_kind,
            **self._identity(),
        }
        if self._is_main:
            write_json(path, summary)
        self._observers.finish(summary)
        self._bar.close()
        self._print(
            f"complete: {progress.step} steps ({summary['stopped_by']}), best validation {TARGET} "
            f"{progress.best[TARGET]:.4f} at step {progress.best_step}; summary in {path}"
        )
        if self._trace.summary:
            self._print(self._trace.summary)
        return summary

    def close(self) -> None:
        """Close the files, restore the signal handler, and write an unfinished trace."""
        resources = (
            *(self._preemption, self._trace, self._bar),
            *(self._writer, self._observers, self._checkpoints),
        )
        with contextlib.ExitStack() as stack:  # closes all of them, also after an error
            for resource in reversed(resources):
                if resource is not None:
                    stack.callback(resource.close)

    def _collect_pending(self) -> None:
        """Fetch the metrics of the last step, check them and add them to the window."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        values = check_step(step, values)
        self.progress.add_step(values)
        self._stopwatch.add_step(values["tokens"])

    def _log(self) -> None:
        """Write a row of the train log."""
        rate = float(self._schedule(self.progress.step - 1))
        values = {**self.progress.close_window(), "learning_rate": rate}
        if self._writer:
            speed = {"tokens_per_s": self.progress.tokens_per_s}
            for writer in (self._writer, self._observers):
                writer.write("train", self.progress.step, values, volatile=speed)

    def _validate(self) -> bool:
        """Write a row of the validation log; return whether it is the best so far."""
        params = local_replica(self._partition.gather(self._state).params)
        if self.data.content is not None:
            params = add_content(params, self.data.content)
        metrics = dict(self.evaluate_fn(params))
        if self._writer:
            for writer in (self._writer, self._observers):
                writer.write("validation", self.progress.step, metrics)
        better = self.progress.add_validation(metrics)
        self._notify("validation", params)
        return better

    def _notify(self, kind: EventKind, params: Params | None = None) -> None:
        """Call the callbacks."""
        progress = self.progress
        self._observers.notify(
            TrainingEvent(
                *(kind, progress.step, dict(progress.last), progress.best_step),
                *(dict(progress.best), self.config, self.workdir, params),
            )
        )

    def _save(self) -> None:
        """Write a checkpoint."""
        self._stopwatch.update_wall()
        meta = {
            "step": self.progress.step,
            "best_step": self.progress.best_step,
            "progress": dataclasses.asdict(self.progress),
            "log_positions": self._writer.positions() if self._writer else {},
            **self._identity(),
        }
        self._checkpoints.save(self._partition.gather(self._state), self.data.batches, meta)
        self._notify("checkpoint")

    def _identity(self) -> dict[str, Any]:
        """Return what identifies the run, in summaries and in checkpoints."""
        content = self.data.content
        vectors = {} if content is None else {VECTOR_LENGTH: int(content.vectors.shape[1])}
        return vectors | {
            "num_items": self.method.num_items,
            "config": to_dict(self.config),
            "config_hash": config_hash(self.config),
            "data_hash": self.data.content_hash,
            "data_path": self.data.path,
            "git_commit": git_commit(),
        }

    def _print_settings(self) -> None:
        """Print the facts of the run, its configuration and its parameters."""
        step = self.progress.step
        facts = {
            "workdir": self.workdir,
            "data_hash": self.data.content_hash,
            "config": config_hash(self.config),
            "items": self.method.num_items,
            "devices": self._describe_devices(),
            "curves": f"tensorboard --logdir={self.workdir / 'train' / 'tensorboard'}",
            "start": f"resumed at step {step}" if step else "step 0",
        }
        self._print(format_settings(self.config, facts))
        self._print(format_parameters(self._partition.abstract.params))

    def _describe_devices(self) -> str:
        used, found = self.config.compute.devices, describe_devices()
        return f"{used} of {found}" if used else found

    def _print(self, text: str) -> None:
        """Print in process 0 only."""
        if self._is_main:
            print(text, flush=True)
