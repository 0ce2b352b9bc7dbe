"""One run of a suite in its own process; `launch.reproduce` starts these.

    python -m launch.experiments.run_one --suite=main --run=NAME --data=data --workdir=runs/reproduce

Trains or resumes WORKDIR/NAME and writes there `SUITE.json`, the run's records, and `SUITE.npz`, the
per-user values behind each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from launch.experiments.analyses import ANALYSES
from launch.experiments.results_file import output_paths, write_user_values
from launch.experiments.run import Run
from launch.experiments.suites import list_runs
from rec2pm_jax import cli
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.lock import alone_in
from rec2pm_jax.runs import Result, fit_to_backend, train_model


def execute(suite: str, run: Run, data: str | Path, workdir: str | Path) -> list[Result]:
    """Train a run, analyse it and write its records under `workdir`.

    Args:
      suite: name of the suite.
      run: a run of that suite.
      data: directory of the prepared datasets.
      workdir: directory of all runs.

    Raises:
      UserError: as training and evaluation do, or another process works on this run.
    """
    dataset = open_dataset(Path(data) / run.dataset)
    directory = Path(workdir) / run.name
    with alone_in(directory):
        model = train_model(fit_to_backend(run.config), dataset, directory)
        results = ANALYSES[run.analysis](run, model, dataset)
        label_records(run, results)
        records, users = output_paths(suite, run, workdir)
        write_user_values(users, results)
        # Last: a run with records is complete.
        write_records(records, [result.record for result in results])
    return results


def label_records(run: Run, results: Sequence[Result]) -> None:
    """Add the run's name, its row of the table and its budget to each record."""
    for result in results:
        variant = run.variant
        if result.record["memory"] == "one_time":
            variant += " (one-time)"
        if "noise" in result.record:
            noise = result.record["noise"]
            variant += f"/{noise['kind']} {noise['fraction']:g}"
        if "stored" in result.record:
            variant += f"/{result.record['stored']}/{result.record['split']}"
        if (
            result.record["config"]["model"]["use_times"]
            and not result.record["request_time_known"]
        ):
            variant += ", request time unknown"
        result.record.update(run=run.name, variant=variant, budget=run.budget)


def main(_) -> None:
    args = flags.FLAGS
    runs = {run.name: run for run in list_runs(args.suite)}
    if args.run not in runs:
        raise UserError(
            f"--run={args.run} is not part of suite {args.suite}.{nearest(args.run, runs)}"
        )
    # On an accelerator: float32 products in float32, for every row of a table.
    jax.config.update("jax_default_matmul_precision", "highest")
    execute(args.suite, runs[args.run], args.data, args.workdir)


if __name__ == "__main__":
    flags.DEFINE_string("suite", None, "The suite that names the run.")
    flags.DEFINE_string("run", None, "Name of the run.")
    flags.DEFINE_string("data", None, "Directory of the prepared datasets.")
    flags.DEFINE_string("workdir", None, "Directory of all runs.")
    flags.mark_flags_as_required(["suite", "run", "data", "workdir"])
    cli.run(main)
