"""One run of a suite in a process of its own; `launch.reproduce` starts these.

    python -m launch.run_one --suite=main --run=NAME --data=data --workdir=runs/reproduce

Trains (or goes on with) WORKDIR/NAME and writes there `SUITE.json`, the run's records, and `SUITE.npz`,
the NDCG@10 of every user behind each of them and the lengths of their histories.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from launch.analyses import ANALYSES
from launch.runs import Result, suited, train
from launch.suites import Run, runs_of
from rec2pm_jax import cli
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.evaluate.metrics import ndcg
from rec2pm_jax.evaluate.record import write_records
from rec2pm_jax.lock import alone_in


def outputs(suite: str, run: Run, workdir: str | Path) -> tuple[Path, Path]:
    """Where a run leaves its records and its per-user values: two suites may share a run."""
    directory = Path(workdir) / run.name
    return directory / f"{suite}.json", directory / f"{suite}.npz"


def execute(suite: str, run: Run, data: str | Path, workdir: str | Path) -> list[Result]:
    """Trains a run, analyses it and leaves its records under `workdir`.

    Raises:
      UserError: as training and evaluation do, or another process is at this run.
    """
    dataset = open_dataset(Path(data) / run.dataset)
    directory = Path(workdir) / run.name
    with alone_in(directory):
        trained = train(suited(run.config), dataset, directory)
        results = ANALYSES[run.analysis](run, trained, dataset)
        label_records(run, results)
        records, users = outputs(suite, run, workdir)
        write_users(users, results)
        # Last: a run with records is complete.
        write_records(records, [result.record for result in results])
    return results


def label_records(run: Run, results: Sequence[Result]) -> None:
    """Adds to each record the run's name, the row of the table it belongs to, and its budget."""
    for result in results:
        variant = run.variant
        if result.record["memory"] == "one_time":
            variant += " (one-time)"
        if "noise" in result.record:
            noise = result.record["noise"]
            variant += f"/{noise['kind']} {noise['fraction']:g}"
        if "stored" in result.record:
            variant += f"/{result.record['stored']}/{result.record['split']}"
        result.record.update(run=run.name, variant=variant, budget=budget(run))


def budget(run: Run) -> dict[str, int]:
    """What a run may spend; `config_hash` leaves the number of steps out."""
    return {"steps": run.config.train.steps, "batch_size": run.config.train.batch_size}


def write_users(path: Path, results: Sequence[Result]) -> None:
    """Per-user NDCG@10, float32 [records, users], and events before the last target, int32 [users].

    With `by_target` also every target's: `target_ndcg` float32 [records, targets], `target_user` and
    `target_position` (events before it) int32 [targets].
    """
    evaluation = results[0].evaluation
    users = np.unique(evaluation.user, return_inverse=True)[1]
    lengths = np.zeros(users.max() + 1, np.int32)
    np.maximum.at(lengths, users, evaluation.position.astype(np.int32))
    per_user = np.stack([result.evaluation.user_ndcg for result in results])
    arrays = {"ndcg": per_user.astype(np.float32), "lengths": lengths}
    if results[0].by_target:
        per_target = np.stack([ndcg(result.evaluation.rank, 10) for result in results])
        arrays["target_ndcg"] = per_target.astype(np.float32)
        arrays["target_user"] = users.astype(np.int32)
        arrays["target_position"] = evaluation.position.astype(np.int32)
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, path)


def main(_) -> None:
    args = flags.FLAGS
    runs = {run.name: run for run in runs_of(args.suite)}
    if args.run not in runs:
        raise UserError(
            f"--run={args.run} is not part of suite {args.suite}.{nearest(args.run, runs)}"
        )
    # Where there is an accelerator: float32 products that are float32, for every row of a table.
    jax.config.update("jax_default_matmul_precision", "highest")
    execute(args.suite, runs[args.run], args.data, args.workdir)


if __name__ == "__main__":
    flags.DEFINE_string("suite", None, "The suite that names the run.")
    flags.DEFINE_string("run", None, "Name of the run.")
    flags.DEFINE_string("data", None, "Directory of the prepared datasets.")
    flags.DEFINE_string("workdir", None, "Directory of all runs.")
    flags.mark_flags_as_required(["suite", "run", "data", "workdir"])
    cli.run(main)
