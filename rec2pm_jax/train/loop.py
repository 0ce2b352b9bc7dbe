"""The training run: steps, logs, validations, checkpoints, and its exact continuation."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import grain
import jax

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import config_hash, to_dict
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.pipeline import train_iterator
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.method import Method
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.train.checkpoint import Checkpoints
from rec2pm_jax.train.growth import grow_state, growth_text, with_items
from rec2pm_jax.train.identity import check_same_run
from rec2pm_jax.train.metric_writer import MetricWriter
from rec2pm_jax.train.optimizer import make_schedule
from rec2pm_jax.train.partition import local_replica, make_partition
from rec2pm_jax.train.preemption import Preempted, Preemption
from rec2pm_jax.train.profile import StepTrace
from rec2pm_jax.train.progress import (
    TARGET,
    Progress,
    ProgressLine,
    Stopwatch,
    parameter_table,
    setting_table,
)
from rec2pm_jax.typing import Params

EvaluateFn = Callable[[Params], Mapping[str, float]]
Summary = dict[str, Any]


def train_and_evaluate(
    config: Config,
    dataset: Dataset,
    method: Method,
    workdir: str | Path,
    evaluate_fn: EvaluateFn,
    profile: str = "",
) -> Summary:
    """Trains `method` on `dataset`; a workdir that holds part of this run is continued exactly.

    Where logs were appended to the dataset since then, the item table grows and training goes on from
    the checkpoint's step with the batches that the grown data have there; validation starts anew.

    See `train_on` for what is written and raised.
    """
    iterator = train_iterator(
        dataset,
        config.data,
        config.train.batch_size,
        config.train.seed,
        jax.process_index(),
        jax.process_count(),
    )
    return train_on(
        config,
        iterator,
        dataset.content_hash,
        method,
        workdir,
        evaluate_fn,
        data_path=str(Path(dataset.path).absolute()),
        profile=profile,
        grown_from=dataset.info.get("grown_from", ()),
    )


def train_on(
    config: Config,
    iterator: grain.DatasetIterator,
    data_hash: str,
    method: Method,
    workdir: str | Path,
    evaluate_fn: EvaluateFn,
    data_path: str | None = None,
    profile: str = "",
    grown_from: Collection[str] = (),
) -> Summary:
    """Trains on an endless iterator of batches until the steps or the patience are used up.

    Writes under `workdir`: `checkpoints/` (see `train.checkpoint`), `train/train.jsonl` (means
    since the row before), `train/validation.jsonl`, `train/tensorboard/` and, once the run is
    complete, `train/summary.json`.

    Args:
      config: the whole configuration; sizes of the batches must fit it.
      iterator: of batches as `Method.loss` takes them; it is moved to the checkpoint's position.
      data_hash: names the data; a workdir remembers it.
      method: what is trained.
      workdir: a new directory, or one of the same run.
      evaluate_fn: params -> validation metrics, "ndcg@10" among them.
      data_path: where the data lie, remembered for commands that are given only the workdir.
      profile: directory for a trace of a few steps, see `StepTrace`; empty for none.
      grown_from: names of the data before something was appended to them.

    Returns:
      The contents of `train/summary.json`.

    Raises:
      UserError: the workdir belongs to another run, none of its checkpoints is readable or one
        cannot be written; a loss or gradient is not finite; a bucket of a sharded table overflows.
      Preempted: SIGTERM came; the last step is saved.
    """
    workdir = Path(workdir)
    run = _Run(config, iterator, data_hash, method, workdir, evaluate_fn, data_path)
    run.trace = StepTrace(profile)
    run.grown_from = grown_from
    try:
        run.start()
        while run.progress.stop_reason(config) is None:
            run.advance()
        return run.finish()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        raise UserError(
            f"Cannot write {error.filename or workdir} ({error.strerror}). Checkpoints are untouched: "
            "free some space, or make it writable, and start the same command again."
        ) from error
    finally:
        run.close()


class _Run:
    """One run in this process: what `train_on` needs at hand between steps."""

    def __init__(self, config, iterator, data_hash, method, workdir, evaluate_fn, data_path):
        self.config, self.iterator, self.data_hash = config, iterator, data_hash
        self.data_path = data_path
        self.method, self.workdir, self.evaluate_fn = method, workdir, evaluate_fn
        self.is_main = jax.process_index() == 0
        train = config.train
        self.schedule = make_schedule(config.optim, train.steps)
        self.partition = make_partition(config, method)
        self.checkpoints = Checkpoints(workdir, train.keep_checkpoints)
        self.progress = Progress()
        self.preemption = Preemption()
        self.pending = None  # (step, metrics still being computed)
        self.writer = self.line = None
        self.trace = StepTrace()
        self.grown_from = ()

    def start(self) -> None:
        """Restores or initialises the state, opens the logs, and says what is being trained."""
        partition = self.partition
        restored = self.checkpoints.restore(
            lambda meta: with_items(partition.abstract, self.method, meta["num_items"]),
            self.iterator,
            check=lambda meta: check_same_run(
                meta, self.config, self.data_hash, self.workdir, self.grown_from
            ),
        )
        positions = {}
        grown = restored is not None and restored.meta["data_hash"] != self.data_hash
        if restored is not None:
            self.progress = Progress(**restored.meta["progress"])
            positions = restored.meta["log_positions"]
        step = self.progress.step
        self._print(
            setting_table(
                self.config,
                {
                    "workdir": self.workdir,
                    "data_hash": self.data_hash,
                    "config": config_hash(self.config),
                    "items": self.method.num_items,
                    "start": f"resumed at step {step}" if step else "step 0",
                },
            )
        )
        self._print(parameter_table(partition.abstract.params))
        if restored is None:
            self.state = partition.init()
        else:
            state = restored.state
            if grown:
                self._print(growth_text(restored.meta, self.data_hash, self.method.num_items))
                state = grow_state(state, self.method, self.config.train.seed)
                self.progress.forget_validations()
            self.state = partition.place(state)
        if self.is_main:
            self.writer = MetricWriter(self.workdir / "train", step, positions)
        self.line = ProgressLine(self.config.train.steps, step, show=self.is_main)
        self.watch = Stopwatch(self.progress)
        if grown:
            self._validate()  # the checkpoint of this step is the one to beat

    def advance(self) -> None:
        """One step, and the row, validation and checkpoint that are due after it."""
        config, progress = self.config.train, self.progress
        with self.trace.step(progress.step) as results:
            self.state, metrics = self.partition.step(self.state, next(self.iterator))
            results(metrics)
        progress.step += 1
        self._take_pending()  # the step before: its numbers are ready while this one is computed
        self.pending = (progress.step, metrics)
        self.line.advance()

        last = progress.step >= config.steps
        log = last or progress.step % config.log_every == 0
        validate = last or progress.step % config.eval_every == 0
        save = last or progress.step % config.checkpoint_every == 0
        stop = self.preemption.reached(progress.step) and not last
        if not (log or validate or save or stop):
            return
        self._take_pending()
        if log:
            self._log()
        if validate:
            better = self._validate()
            save = save or better or progress.stop_reason(self.config) is not None
        if save or stop:
            self._save()
        if stop:
            raise Preempted(
                f"stopped by SIGTERM after step {progress.step}, which is saved; the same command "
                "goes on from there"
            )
        self.line.describe(progress)
        self.watch.skip()

    def finish(self) -> Summary:
        """Writes the summary (again, where a run was killed just before) and returns it."""
        progress, path = self.progress, self.workdir / "train" / "summary.json"
        summary = {
            "stopped_by": progress.stop_reason(self.config),
            "steps": progress.step,
            "best_step": progress.best_step,
            "best": progress.best,
            "wall_s": progress.wall_s,
            "tokens_per_s": progress.tokens_per_s,
            "device": jax.devices()[0].device_kind,
            **self._identity(),
        }
        if self.is_main:
            _write_json(path, summary)
        self.line.close()
        self._print(
            f"complete: {progress.step} steps ({summary['stopped_by']}), best validation {TARGET} "
            f"{progress.best[TARGET]:.4f} at step {progress.best_step}; summary in {path}"
        )
        if self.trace.summary:
            self._print(self.trace.summary)
        return summary

    def close(self) -> None:
        resources = (self.preemption, self.trace, self.line, self.writer, self.checkpoints)
        for resource in resources:
            if resource is not None:
                resource.close()

    def _take_pending(self) -> None:
        """Fetches the metrics of the last step, checks them and adds them to the window."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not metrics.pop("fits", 1):
            raise _does_not_fit(step, metrics)
        if not metrics.pop("finite"):
            raise _not_finite(step, metrics)
        self.progress.add(metrics)
        self.watch.steps_done(metrics["tokens"])

    def _log(self) -> None:
        rate = float(self.schedule(self.progress.step - 1))
        values = {**self.progress.close_window(), "learning_rate": rate}
        if self.writer:
            speed = {"tokens_per_s": self.progress.tokens_per_s}
            self.writer.write("train", self.progress.step, values, volatile=speed)

    def _validate(self) -> bool:
        metrics = dict(self.evaluate_fn(local_replica(self.partition.gather(self.state).params)))
        if self.writer:
            self.writer.write("validation", self.progress.step, metrics)
        return self.progress.validated(metrics)

    def _save(self) -> None:
        self.watch.book_wall()
        meta = {
            "step": self.progress.step,
            "best_step": self.progress.best_step,
            "progress": dataclasses.asdict(self.progress),
            "log_positions": self.writer.positions() if self.writer else {},
            **self._identity(),
        }
        self.checkpoints.save(self.partition.gather(self.state), self.iterator, meta)

    def _identity(self) -> dict[str, Any]:
        return {
            "num_items": self.method.num_items,
            "config": to_dict(self.config),
            "config_hash": config_hash(self.config),
            "data_hash": self.data_hash,
            "data_path": self.data_path,
            "git_commit": git_commit(),
        }

    def _print(self, text: str) -> None:
        if self.is_main:
            print(text, flush=True)


def _not_finite(step: int, metrics: Mapping[str, float]) -> UserError:
    values = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items() if name != "tokens")
    return UserError(
        f"Step {step}: the loss or its gradient is not finite ({values}); the update was not "
        "applied and the last checkpoint stands. Lower config.optim.learning_rate, raise "
        "config.optim.warmup_steps, set config.optim.clip_norm, or use config.model.dtype=float32."
    )


def _does_not_fit(step: int, metrics: Mapping[str, float]) -> UserError:
    needed, capacity = int(metrics["bucket_rows"]), int(metrics["bucket_capacity"])
    return UserError(
        f"Step {step}: a device asks another for {needed} rows of the item table, and a bucket holds "
        f"{capacity}; the update was not applied and the last checkpoint stands. Start again with "
        f"--config.compute.bucket_rows={-(-needed * 9 // 8)} (at least {needed}); the result does "
        "not depend on it."
    )


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)
