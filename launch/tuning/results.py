"""What a search has found: records, what mattered, a page, and the best setting as a preset."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from launch.tuning.halving import ERROR, KEPT, latest_trials
from launch.tuning.preset_file import write_preset
from launch.tuning.search import SECONDS
from launch.tuning.study import Plan
from rec2pm_jax.json_file import replaced_file, write_json
from rec2pm_jax.presets import load_preset
from rec2pm_jax.provenance import git_commit

_FEWEST = 4  # runs that an importance needs
_SHOWN = 20  # rows of the page


@dataclasses.dataclass(frozen=True)
class TunedRun:
    """One run of a search.

    Attributes:
      number: of the run, and of its directory.
      setting: {field: value}.
      state: complete, stopped (at a rung), interrupted (by the end of the budget), failed or refused.
      values: {rung: best validation NDCG@10 up to there, a fraction of 1}.
      seconds: of training, all processes of the run together.
      is_preset: whether the setting is that of the preset.
      error: why it failed or was refused.
    """

    number: int
    setting: dict[str, Any]
    state: str
    values: dict[int, float]
    seconds: float
    is_preset: bool
    error: str | None

    @property
    def steps(self) -> int:
        """The last rung that the run has reached; 0 before the first."""
        return max(self.values, default=0)

    @property
    def value(self) -> float | None:
        """NDCG@10 there."""
        return self.values[self.steps] if self.values else None


def collect_runs(study: optuna.Study) -> list[TunedRun]:
    """Return all runs of a study, the longest and best first."""
    started = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    trials = study.get_trials(deepcopy=False, states=started)
    fields = study.user_attrs["identity"]["search"].keys()
    runs = [
        _make_run(number, trial)
        for number, trial in latest_trials(trials).items()
        if fields <= trial.params.keys()  # else the call ended while it chose the setting
    ]
    return sorted(runs, key=lambda run: (-run.steps, -(run.value or 0.0), run.number))


def find_best(runs: Sequence[TunedRun]) -> TunedRun | None:
    """Return the complete run with the best metric; None if no run is complete."""
    complete = [run for run in runs if run.state == "complete"]
    return max(complete, key=lambda run: run.value or 0.0, default=None)


def measure_importance(plan: Plan, runs: Sequence[TunedRun], rung: int) -> dict[str, float] | None:
    """Return which share of the variance between runs each field explains, by fANOVA.

    Args:
      plan: of the search.
      runs: its runs; those that have not reached the rung are left out.
      rung: the steps at which runs are compared.

    Returns:
      {field: share}; None if fewer than four runs have reached the rung, or all are equal.
    """
    reached = [run for run in runs if rung in run.values]
    if len(reached) < _FEWEST or len({run.values[rung] for run in reached}) == 1:
        return None
    distributions = {d.field: d.distribution for d in plan.dimensions}
    study = optuna.create_study(direction="maximize")
    for run in reached:
        study.add_trial(
            optuna.create_trial(
                params=run.setting, distributions=distributions, value=run.values[rung]
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {d.field: float(found.get(d.field, 0.0)) for d in plan.dimensions}


def write_results(plan: Plan, study: optuna.Study, workdir: Path, data: str) -> None:
    """Write `tune.json`, `tune.md` and, once a run is complete, `best.py`.

    Args:
      plan: of the search.
      study: of `study.open_study`.
      workdir: where the files go.
      data: directory of the data, for the command in the preset.
    """
    runs = collect_runs(study)
    importance = {
        str(rung): found for rung in plan.rungs if (found := measure_importance(plan, runs, rung))
    }
    best = find_best(runs)
    write_json(
        workdir / "tune.json",
        {
            "preset": plan.preset,
            **study.user_attrs["identity"],
            "git_commit": git_commit(),
            "process_hours": round(sum(run.seconds for run in runs) / 3600, 3),
            "best": best and best.number,
            "importance": importance,
            "runs": [dataclasses.asdict(run) for run in runs],
        },
    )
    with replaced_file(workdir / "tune.md") as temporary:
        temporary.write_text("\n".join(_format_page(plan, runs, importance)) + "\n")
    if best is not None:
        config = load_preset(plan.preset, {**plan.changes, **best.setting})
        docstring = (
            f"Found by launch.tune, run {best.number}, from preset {Path(plan.preset).name}.\n\n"
            f"Command: python -m launch.train --config=FILE --data={data} --workdir=runs/best\n"
            f"Metrics: validation NDCG@10 {100 * (best.value or 0.0):.2f} %, "
            "the best of the search and so optimistic.\n"
        )
        write_preset(config, workdir / "best.py", docstring)


def format_value(value: Any) -> str:
    """Return a value of a field as pages show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _make_run(number: int, trial: FrozenTrial) -> TunedRun:
    error, seconds = trial.user_attrs.get(ERROR), trial.user_attrs.get(SECONDS, 0.0)
    state = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "stopped",
    }.get(trial.state, "interrupted")
    if error:
        state = "failed" if seconds else "refused"
    return TunedRun(
        *(number, dict(trial.params), state, dict(trial.intermediate_values)),
        *(seconds, bool(trial.user_attrs.get(KEPT)), error),
    )


def _format_page(
    plan: Plan, runs: Sequence[TunedRun], importance: dict[str, dict[str, float]]
) -> list[str]:
    """Return the lines of `tune.md`."""
    best, own = find_best(runs), next((run for run in runs if run.is_preset), None)
    fields = [d.field for d in plan.dimensions]
    hours = sum(run.seconds for run in runs) / 3600
    lines = [
        "# Search",
        "",
        f"{len(runs)} runs from preset `{Path(plan.preset).name}` in {hours:.2f} process-hours. "
        f"Validation NDCG@10 in percent, the best so far at each rung. Of the runs at a rung, the "
        f"best 1/{plan.eta} continue.",
        "",
        "## What mattered",
        "",
        "Importance is the share of the variance between runs that a field explains (fANOVA), at a "
        "rung that many runs reach. It is about the range that was searched.",
        "",
    ]
    heads = [
        f"importance at {rung} steps ({sum(int(rung) in r.values for r in runs)} runs)"
        for rung in importance
    ]
    lines += _table_head(["field", "searched", "preset", "best", *heads])
    order = sorted(
        plan.dimensions, key=lambda d: -next(iter(importance.values()), {}).get(d.field, 0)
    )
    for d in order:
        shares = [f"{100 * found[d.field]:.0f} %" for found in importance.values()]
        cells = [
            f"`{d.field}`",
            d.text,
            format_value(own.setting[d.field]) if own else "not tried",
            format_value(best.setting[d.field]) if best else "-",
        ]
        lines.append(_row([*cells, *shares]))
    if not importance:
        lines += [
            "",
            f"Fewer than {_FEWEST} runs have reached a rung, so there is no importance yet.",
        ]
    lines += ["", "## Runs", ""]
    lines += _table_head(
        ["run", *fields, *(f"{rung} steps" for rung in plan.rungs), "minutes", "state"]
    )
    for run in runs[:_SHOWN]:
        name = f"**{run.number}**" if run is best else str(run.number)
        values = [_percent(run.values.get(rung)) for rung in plan.rungs]
        setting = [format_value(run.setting[field]) for field in fields]
        state = run.state + (", preset" if run.is_preset else "")
        lines.append(_row([name, *setting, *values, f"{run.seconds / 60:.1f}", state]))
    if len(runs) > _SHOWN:
        lines += ["", f"{len(runs) - _SHOWN} more runs are in `tune.json`."]
    errors = [run for run in runs if run.error]
    if errors:
        lines += ["", "## Failures", ""]
        lines += [f"- run {run.number}: {run.error}" for run in errors[:_SHOWN]]
    return lines


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _table_head(names: Sequence[str]) -> list[str]:
    return [_row(names), "|" + "---|" * len(names)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
