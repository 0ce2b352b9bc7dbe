"""Evaluate a trained model, or a heuristic, on the full catalogue and write evaluation records.

    python -m launch.evaluate --workdir=runs/x --split=test --json=runs/x/test.json
    python -m launch.evaluate --workdir=runs/x --memory=one_time --diagnostics
    python -m launch.evaluate --workdir=runs/x --cutoffs=5,10,20,100 --list_metrics --slices
    python -m launch.evaluate --heuristic=counts_and_transitions --request_time_known --data=data/types

Memory is folded over every archived segment of a user's history, as streaming does it, unless
--max_segments limits it.

A sharded item table stays divided over the devices of the job, see docs/distributed.md.
"""

from __future__ import annotations

from typing import Any

import jax
from absl import flags

from launch.configs.job_flags import define_job, join_job
from launch.configs.measure_flags import define_measures
from launch.experiments.evaluating import evaluate_baseline, evaluate_workdir
from rec2pm_jax import cli
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.splits import SPLITS
from rec2pm_jax.devices import describe_devices
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.heuristic import HEURISTICS
from rec2pm_jax.evaluation.per_user import write_user_rows
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.evaluation.report import (
    diagnostics_table,
    measures_tables,
    metrics_table,
    setting_line,
)
from rec2pm_jax.runs import Result

flags.DEFINE_string("workdir", "", "Directory of a training run.")
flags.DEFINE_string("heuristic", "", f"Instead of a run: {', '.join(HEURISTICS)}.")
flags.DEFINE_string("data", "", "Prepared dataset; by default the one the run was trained on.")
flags.DEFINE_enum("split", "test", SPLITS, "Which targets to rank.")
flags.DEFINE_string("protocol", "", "Split rule; by default the run's (last_10 for a heuristic).")
flags.DEFINE_string("memory", "", "overwrite, append or one_time; by default the run's own.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.DEFINE_integer("max_segments", 0, "Newest archived segments memory may fold; 0: all.", 0)
flags.DEFINE_integer("max_users", 0, "Evaluate a fixed random subset of users; 0: all.", 0)
flags.DEFINE_integer("batch_size", 128, "Most users per compiled call.", 1)
flags.DEFINE_boolean("diagnostics", False, "Also: own, swapped, zero, mean memory, drift, ...")
flags.DEFINE_boolean(
    "request_time_known",
    None,
    "Predictions may use their target's time (default: if they read it).",
)
flags.DEFINE_string("split_time", "", "Heuristic, protocol temporal..: targets are from then on.")
flags.DEFINE_float("validation_days", 1.0, "Heuristic, protocol temporal..: days before that.", 0.0)
flags.DEFINE_string(
    "target_types", "", "Event types that are targets; by default the run's, or all."
)
define_measures()
flags.DEFINE_integer("window", 0, "personal_frequency: newest events that count; 0: all.", 0)
flags.DEFINE_float("half_life", 0.0, "personal_frequency: decay in events; 0: none.", 0.0)
flags.DEFINE_integer(
    "devices", None, "Devices that a sharded item table is divided over; by default all.", 0
)
flags.DEFINE_string("json", "", "File for the list of records.")
flags.DEFINE_string("per_user", "", "Parquet file for a row of metrics per user.")
define_job()


def main(_: list[str]) -> None:
    args = flags.FLAGS
    if bool(args.workdir) == bool(args.heuristic):
        raise UserError("Pass one of --workdir=DIR and --heuristic=NAME.")
    with join_job(args):
        evaluated = evaluate_workdir(args) if args.workdir else evaluate_baseline(args)
        if jax.process_index() == 0:
            _report(args, *evaluated)


def _report(args: Any, result: Result, dataset: Dataset) -> None:
    record = result.record
    if args.workdir:
        print(f"devices: {describe_devices()}")
    print(setting_line(record))
    print(metrics_table([record]))
    if further := measures_tables([record]):
        print(f"\n{further}")
    if "diagnostics" in record:
        print(f"\n{diagnostics_table(record['diagnostics'])}")
    if args.per_user:
        write_user_rows(args.per_user, result.evaluation, dataset)
        print(f"a row per user in {args.per_user}")
    if args.json:
        write_records(args.json, [record])
        print(f"written to {args.json}")


if __name__ == "__main__":
    cli.run(main)
