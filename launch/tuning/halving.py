"""Asynchronous successive halving: which runs continue after a rung.

A rung is a number of steps at which runs are compared. Of the runs that reached it, the best 1 / eta
continue to the next one. Others stop after a checkpoint. They continue from there if they are among the
best later, when worse runs have arrived (ASHA: Li et al., "Massively Parallel Hyperparameter Tuning").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

RUN = "run"  # attribute: the number of the trial that began the run
KEPT = "kept"  # attribute of the preset's own trial, which is always trained to the end
ERROR = "error"  # attribute: why a run failed


def list_rungs(steps: int, eta: int, count: int) -> list[int]:
    """Return the steps at which runs are compared; the last is the end of a run.

    Args:
      steps: of a whole run.
      eta: one of so many runs continues.
      count: rungs at most; short runs have fewer.

    >>> list_rungs(700, 3, 3)
    [78, 234, 700]
    """
    first = math.ceil(steps / eta ** (count - 1))
    rungs = [first * eta**i for i in range(count - 1)]
    return [step for step in rungs if step < steps] + [steps]


def is_among_best(value: float, others: Sequence[float], eta: int) -> bool:
    """Return whether a run continues: it is one of the best 1 / eta, or the best of less than eta.

    Args:
      value: its metric at a rung.
      others: the metrics of all other runs there.
      eta: one of so many runs continues.
    """
    better = sum(other > value for other in others)
    return better < max(1, (len(others) + 1) // eta)


def latest_trials(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the newest trial of each run, by the number of the run.

    A trial of Optuna cannot be opened again once it has stopped. So a run that continues does so as a
    new trial with the same setting, which replaces the one before.
    """
    return {trial.user_attrs.get(RUN, trial.number): trial for trial in trials}


class PromotingPruner(optuna.pruners.BasePruner):
    """Stops a run at a rung unless it is among the best there.

    Optuna's own pruner of successive halving never lets a stopped run continue, and it would count a
    run that continues twice.
    """

    def __init__(self, rungs: Sequence[int], eta: int) -> None:
        """Compare runs at `rungs`; one of `eta` continues."""
        self.rungs, self._eta = list(rungs), eta

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether a run stops at the rung that it has reached last."""
        step = self.reached(trial)
        if step is None or step == self.rungs[-1] or trial.user_attrs.get(KEPT):
            return False
        return not self._goes_on(trial, step, study.get_trials(deepcopy=False))

    def find_promotable(self, study: optuna.Study) -> FrozenTrial | None:
        """Return the best stopped run of the highest rung that should continue; None if none should."""
        trials = study.get_trials(deepcopy=False)
        stopped: list[tuple[int, float, Any]] = []
        for trial in latest_trials(trials).values():
            step = self.reached(trial)
            failed = ERROR in trial.user_attrs
            if trial.state == TrialState.PRUNED and step is not None and not failed:
                if self._goes_on(trial, step, trials):
                    stopped.append((step, trial.intermediate_values[step], trial))
        return max(stopped, key=lambda found: found[:2])[2] if stopped else None

    def reached(self, trial: FrozenTrial) -> int | None:
        """Return the last rung that a trial has reached; None before the first."""
        return max((step for step in self.rungs if step in trial.intermediate_values), default=None)

    def _goes_on(self, trial: FrozenTrial, step: int, trials: Sequence[FrozenTrial]) -> bool:
        own = trial.user_attrs.get(RUN, trial.number)
        others = [
            other.intermediate_values[step]
            for run, other in latest_trials(trials).items()
            if run != own and step in other.intermediate_values
        ]
        return is_among_best(trial.intermediate_values[step], others, self._eta)
