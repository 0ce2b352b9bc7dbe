"""Evaluate a trained model, or a heuristic, on the full catalogue and write evaluation records.

    python -m launch.evaluate --workdir=runs/x --split=test --json=runs/x/test.json
    python -m launch.evaluate --workdir=runs/x --memory=one_time --diagnostics
    python -m launch.evaluate --heuristic=counts_and_transitions --request_time_known --data=data/types

Memory is folded over every archived segment of a user's history, as streaming does it, unless
--max_segments limits it.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from rec2pm_jax import cli
from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.splits import SPLITS
from rec2pm_jax.data.splits import settings as protocol_settings
from rec2pm_jax.devices import describe_devices
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.diagnostics import memory_diagnostics
from rec2pm_jax.evaluation.heuristic import HEURISTICS, Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.item_frequency import by_training_events
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.evaluation.report import record_text
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.runs import evaluate_run
from rec2pm_jax.training.trained_run import load_run

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
flags.DEFINE_string("split_time", "", "Heuristic, protocol temporal: targets are from then on.")
flags.DEFINE_float("validation_days", 1.0, "Heuristic, protocol temporal: days before that.", 0.0)
flags.DEFINE_float("holdout_fraction", 0.1, "Heuristic, protocol holdout_..: share of users.")
flags.DEFINE_integer("window", 0, "personal_frequency: newest events that count; 0: all.", 0)
flags.DEFINE_float("half_life", 0.0, "personal_frequency: decay in events; 0: none.", 0.0)
flags.DEFINE_string("json", "", "File for the list of records.")


def evaluate_workdir(args: Any) -> dict[str, Any]:
    """Return the record of a trained model, with its memory diagnostics if they are asked for."""
    if args.window or args.half_life:
        raise UserError("--window and --half_life belong to --heuristic=personal_frequency.")
    if args.split_time:
        raise UserError(
            "--split_time is for a heuristic; a run has its own config.data.split_time."
        )
    run = load_run(
        args.workdir, data=args.data or None, checkpoint=args.checkpoint, memory=args.memory or None
    )
    spec = EvalSpec(
        args.split,
        protocol=args.protocol or None,
        memory=args.memory or None,
        max_users=args.max_users or None,
        max_segments=args.max_segments or None,
        batch_size=args.batch_size,
        request_time_known=args.request_time_known,
    )
    record = evaluate_run(run, spec).record
    if args.diagnostics:
        record["diagnostics"] = memory_diagnostics(run.method, run.params, run.dataset, spec)
    return record


def evaluate_baseline(args: Any) -> dict[str, Any]:
    """Return the record of a heuristic."""
    for flag in ("memory", "max_segments", "diagnostics"):
        if getattr(args, flag):
            raise UserError(f"--{flag} needs a trained model (--workdir); heuristics have none.")
    if not args.data:
        raise UserError("A heuristic needs --data=DIR, a directory made by launch.prepare.")
    heuristic = Heuristic(args.heuristic, args.window or None, args.half_life or None)
    data = DataConfig(
        protocol=args.protocol or "last_10",
        split_time=args.split_time or None,
        validation_days=args.validation_days,
        holdout_fraction=args.holdout_fraction,
    )
    known = args.request_time_known
    spec = EvalSpec(args.split, max_users=args.max_users or None, request_time_known=known)
    dataset = open_dataset(args.data)
    evaluation = evaluate_heuristic(heuristic, dataset, spec, data)
    record = evaluation.record(config=protocol_settings(data), git_commit=git_commit())
    return record | {"by_training_events": by_training_events(evaluation, dataset, data)}


def main(_: list[str]) -> None:
    args = flags.FLAGS
    if bool(args.workdir) == bool(args.heuristic):
        raise UserError("Pass one of --workdir=DIR and --heuristic=NAME.")
    record = evaluate_workdir(args) if args.workdir else evaluate_baseline(args)
    if args.workdir:
        print(f"devices: {describe_devices()}")
    print(record_text(record))
    if args.json:
        write_records(args.json, [record])
        print(f"written to {args.json}")


if __name__ == "__main__":
    cli.run(main)
