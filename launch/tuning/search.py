"""Runs a search: one training process per core, compared at rungs, until the budget is used up."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from launch.benchmarks import processes
from launch.tuning.halving import ERROR, KEPT, RUN, PromotingPruner
from launch.tuning.preset_file import write_preset
from launch.tuning.space import load_checked
from launch.tuning.study import Plan
from launch.tuning.trial_process import PRESET, TrialProcess, read_curve
from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.lock import alone_in
from rec2pm_jax.training.preemption import EXIT_PREEMPTED

SECONDS = "seconds"  # attribute of a trial: of all its processes
RUNS = "runs"  # folder of the workdirs of all runs
_POLL_S = 0.5
_REFUSALS = 50  # settings in a row that the configuration may refuse
_FAILURES = 5  # runs in a row that may fail


@dataclasses.dataclass(frozen=True)
class Budget:
    """When a search ends.

    Attributes:
      hours: of this call; None: no limit.
      runs: of the whole search, all calls together; None: no limit.
      workers: processes at a time; 0: one per core.
    """

    hours: float | None = None
    runs: int | None = None
    workers: int = 0


def make_trial_config(plan: Plan, setting: dict[str, Any]) -> Config:
    """Return the configuration of a run: validated and saved at multiples of the first rung.

    Raises:
      UserError: the configuration refuses the setting.
    """
    config = load_checked(plan.preset, {**plan.changes, **setting})
    every = plan.rungs[0]
    patience = math.ceil(config.train.patience * config.train.eval_every / every)
    train = dataclasses.replace(
        config.train, eval_every=every, checkpoint_every=every, patience=patience
    )
    return dataclasses.replace(config, train=train)


class Search:
    """A call of `launch.tune`."""

    def __init__(
        self,
        plan: Plan,
        study: optuna.Study,
        pruner: PromotingPruner,
        workdir: Path,
        train_flags: list[str],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare a search.

        Args:
          plan: what is tried.
          study: of `study.open_study`, and its pruner.
          pruner: see `study`.
          workdir: of the search.
          train_flags: flags of `launch.train` that all runs share, `--data` among them.
          on_change: called after a run has ended or stopped.
        """
        self._plan, self._study, self._pruner = plan, study, pruner
        self._workdir, self._flags, self._on_change = workdir, train_flags, on_change
        self._active: list[TrialProcess] = []
        self._failures = 0

    def run(self, budget: Budget) -> None:
        """Try settings until the budget is used up; stop all runs after a checkpoint then.

        Raises:
          UserError: more workers than cores, the run of the preset's own setting fails, too many
            runs fail, or the configuration refuses nearly all settings.
        """
        cores = processes.choose_cores(budget.workers)
        deadline = time.time() + 3600 * budget.hours if budget.hours else math.inf
        interrupted = [t for t in self._trials() if t.state == TrialState.RUNNING]
        try:
            while time.time() < deadline:
                while len(self._active) < len(cores):
                    trial = (
                        self._complete(interrupted.pop(0)) if interrupted else self._choose(budget)
                    )
                    if trial is None:
                        break
                    core = next(c for c in cores if c not in [p.core for p in self._active])
                    self._start(trial, core)
                if not self._active:
                    return
                time.sleep(_POLL_S)
                for process in list(self._active):
                    self._follow(process)
        finally:
            for process in self._active:
                process.process.send_signal(signal.SIGTERM)
            for process in self._active:
                process.stop()
                stops = self._stops_at_new_rung(process.number, process.directory)
                self._add_seconds(process)
                if process.process.returncode == 0:
                    self._study.tell(process.number, self._value(process))
                elif process.process.returncode == EXIT_PREEMPTED and (process.pruned or stops):
                    self._study.tell(process.number, state=TrialState.PRUNED)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _open(self, number: int) -> optuna.Trial:
        """Return the trial of a number, which still runs."""
        return optuna.Trial(self._study, self._trials()[number]._trial_id)

    def _choose(self, budget: Budget) -> FrozenTrial | None:
        """Return the trial to start next: a stopped run that resumes, or a new one."""
        stopped = self._pruner.find_promotable(self._study)
        if stopped is not None:
            attributes = {RUN: stopped.number} | stopped.user_attrs
            self._study.enqueue_trial(stopped.params, user_attrs=attributes)
        # A call that was killed may have left one in the queue.
        if any(trial.state == TrialState.WAITING for trial in self._trials()):
            return self._ask()
        if budget.runs is not None and self._count_runs() >= budget.runs:
            return None
        reason = ""
        for _ in range(_REFUSALS):
            trial = self._ask()
            try:
                make_trial_config(self._plan, trial.params)
                return trial
            except UserError as error:
                reason = str(error)
                self._fail(trial.number, reason)
        raise UserError(
            f"The configuration refuses {_REFUSALS} settings in a row, the last with: {reason}"
        )

    def _count_runs(self) -> int:
        """Return how many runs were started; settings that the configuration refuses are none."""
        directory = self._workdir / RUNS
        return len(list(directory.iterdir())) if directory.exists() else 0

    def _ask(self) -> FrozenTrial:
        trial = self._study.ask({d.field: d.distribution for d in self._plan.dimensions})
        return self._trials()[trial.number]

    def _complete(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a trial with all fields; a call that was killed may have chosen only some."""
        opened = self._open(trial.number)
        for dimension in self._plan.dimensions:
            opened._suggest(dimension.field, dimension.distribution)  # keeps what was chosen
        return self._trials()[trial.number]

    def _start(self, trial: FrozenTrial, core: int | None) -> None:
        """Start or resume the run of a trial, unless it stops where it is.

        Raises:
          UserError: another process trains it, such as one that a killed call has left.
        """
        run = trial.user_attrs.get(RUN, trial.number)
        directory = self._workdir / RUNS / f"{run:04}"
        with alone_in(directory / "train"):
            pass
        # Decided now: a process that has just begun could not save when it is told to stop.
        if self._stops_at_new_rung(trial.number, directory):
            self._study.tell(trial.number, state=TrialState.PRUNED)
            return
        config = make_trial_config(self._plan, trial.params)
        write_preset(config, directory / PRESET, f"Run {run} of a search by launch.tune.")
        process = TrialProcess(trial.number, directory, core, self._flags)
        self._active.append(process)
        steps = max(read_curve(directory), default=0)
        self._say(process, f"resumes after step {steps}" if steps else "starts")

    def _follow(self, process: TrialProcess) -> None:
        """Report what a run has reached; stop it if it is not among the best; see to its end."""
        code = process.process.poll()  # before its files are read, so that they are whole
        step = self._report(process.number, process.directory)
        if step is not None and code is None and not process.pruned:
            prune = self._open(process.number).should_prune()
            what = "stops" if prune else "continues"
            if step < self._plan.rungs[-1]:
                self._say(process, f"{100 * self._value(process):.2f} % after step {step}, {what}")
            if prune:
                process.pruned = True
                process.process.send_signal(signal.SIGTERM)
        if code is not None:
            self._end(process, code)

    def _stops_at_new_rung(self, number: int, directory: Path) -> bool:
        """Report new rungs of a run that does not train; return whether it stops at the last."""
        return self._report(number, directory) is not None and self._open(number).should_prune()

    def _report(self, number: int, directory: Path) -> int | None:
        """Report new rungs of a run; return the last of them, None if there is none."""
        trial, new = self._open(number), None
        known = self._trials()[number].intermediate_values
        for step, value in read_curve(directory).items():
            if step in self._plan.rungs and step not in known:
                trial.report(value, step)
                new = step
        return new

    def _value(self, process: TrialProcess) -> float:
        """Return the best NDCG@10 of a run so far."""
        return max(read_curve(process.directory).values())

    def _end(self, process: TrialProcess, code: int) -> None:
        """Tell the study how a run has ended."""
        self._active.remove(process)
        self._add_seconds(process)
        number = process.number
        if code == 0:
            value = self._value(process)
            self._say(process, f"complete, {100 * value:.2f} %")
            self._study.tell(number, value)
        elif code == EXIT_PREEMPTED and process.pruned:
            self._study.tell(number, state=TrialState.PRUNED)
        elif code == EXIT_PREEMPTED:
            raise UserError(
                f"Run {process.directory} received SIGTERM. The same command resumes the search."
            )
        else:
            reason = f"exit code {code}: {process.last_line()}"
            self._say(process, f"failed ({reason})")
            kept = self._trials()[number].user_attrs.get(KEPT)
            self._fail(number, reason)
            self._failures += 1
            if kept or self._failures == _FAILURES:
                what = "The preset's own setting" if kept else f"{_FAILURES} runs in a row"
                raise UserError(f"{what} failed ({reason}) The whole log: {process.log}")
        if code in (0, EXIT_PREEMPTED):
            self._failures = 0
        self._on_change()

    def _fail(self, number: int, reason: str) -> None:
        """Close a trial that cannot be trained. The sampler ranks it below all others."""
        self._open(number).set_user_attr(ERROR, reason)
        self._study.tell(number, state=TrialState.PRUNED)

    def _add_seconds(self, process: TrialProcess) -> None:
        trial = self._open(process.number)
        before = trial.user_attrs.get(SECONDS, 0.0)
        trial.set_user_attr(SECONDS, round(before + process.seconds, 1))

    def _say(self, process: TrialProcess, what: str) -> None:
        params = self._trials()[process.number].params
        setting = " ".join(
            f"{field}={value:.4g}" if isinstance(value, float) else f"{field}={value}"
            for field, value in params.items()
        )
        print(f"run {int(process.directory.name)} ({setting}): {what}", flush=True)
