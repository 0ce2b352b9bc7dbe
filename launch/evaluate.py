"""Evaluates a trained model, or a heuristic, on the full catalogue and writes evaluation records.

    python -m launch.evaluate --workdir=runs/x --split=test --json=runs/x/test.json
    python -m launch.evaluate --workdir=runs/x --memory=one_time --diagnostics
    python -m launch.evaluate --heuristic=personal_frequency --window=50 --data=data/types

Memory is folded over every archived segment of a user's history, as streaming does it, unless
--max_segments limits it.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from rec2pm_jax import cli
from rec2pm_jax.config import Config, DataConfig
from rec2pm_jax.config_dict import config_hash, to_dict
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.splits import SPLITS
from rec2pm_jax.data.splits import settings as protocol_settings
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluate.diagnostics import memory_diagnostics
from rec2pm_jax.evaluate.evaluator import evaluate, own_memory
from rec2pm_jax.evaluate.heuristic import evaluate_heuristic
from rec2pm_jax.evaluate.record import write_records
from rec2pm_jax.evaluate.report import diagnostics_table, metrics_table, setting_line
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.train.checkpoint import load_for_inference
from rec2pm_jax.train.growth import grow_items
from rec2pm_jax.train.identity import open_training_data

flags.DEFINE_string("workdir", "", "Directory of a training run.")
flags.DEFINE_string("heuristic", "", "Instead of a run: popularity or personal_frequency.")
flags.DEFINE_string("data", "", "Prepared dataset; by default the one the run was trained on.")
flags.DEFINE_enum("split", "test", SPLITS, "Which targets to rank.")
flags.DEFINE_string("protocol", "", "Split rule; by default the run's (last_10 for a heuristic).")
flags.DEFINE_string("memory", "", "overwrite, append or one_time; by default the run's own.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.DEFINE_integer("max_segments", 0, "Newest archived segments memory may fold; 0: all.", 0)
flags.DEFINE_integer("max_users", 0, "Evaluate a fixed random subset of users; 0: all.", 0)
flags.DEFINE_integer("batch_size", 128, "Most users per compiled call.", 1)
flags.DEFINE_boolean("diagnostics", False, "Also: own, swapped, zero, mean memory, drift, ...")
flags.DEFINE_string("split_time", "", "Heuristic, protocol temporal: targets are from then on.")
flags.DEFINE_float("validation_days", 1.0, "Heuristic, protocol temporal: days before that.", 0.0)
flags.DEFINE_float("holdout_fraction", 0.1, "Heuristic, protocol holdout_..: share of users.")
flags.DEFINE_integer("window", 0, "personal_frequency: newest events that count; 0: all.", 0)
flags.DEFINE_float("half_life", 0.0, "personal_frequency: decay in events; 0: none.", 0.0)
flags.DEFINE_string("json", "", "File for the list of records.")


def evaluate_workdir(args) -> tuple[dict, dict | None]:
    """The record of a trained model, and its memory diagnostics where they are asked for."""
    if args.window or args.half_life:
        raise UserError("--window and --half_life belong to --heuristic=personal_frequency.")
    if args.split_time:
        raise UserError(
            "--split_time is for a heuristic; a run has its own config.data.split_time."
        )
    config, params, meta = load_for_inference(args.workdir, args.checkpoint)
    dataset = open_training_data(args.data, args.workdir, meta)
    params = grow_items(params, dataset.num_items, config.train.seed)
    method = make_method(serving_config(config, args.memory), dataset.num_items)
    options = {
        "split": args.split,
        "memory": args.memory,
        "protocol": args.protocol,
        "batch_size": args.batch_size,
        "max_users": args.max_users,
        "max_segments": args.max_segments,
    }
    evaluation = evaluate(method, params, dataset, **options)
    record = evaluation.record(
        config=to_dict(config),
        config_hash=config_hash(config),
        seed=config.train.seed,
        step=meta["step"],
        git_commit=git_commit(),
    )
    if not args.diagnostics:
        return record, None
    diagnostics = memory_diagnostics(method, params, dataset, **options)
    return record | {"diagnostics": diagnostics}, diagnostics


def serving_config(config: Config, memory: str) -> Config:
    """The run's configuration, serving the same weights with another fold where that is asked."""
    if own_memory(config) == "none" or memory not in ("overwrite", "append"):
        return config
    return dataclasses.replace(config, method=dataclasses.replace(config.method, memory=memory))


def evaluate_baseline(args) -> dict:
    """The record of a heuristic."""
    for flag in ("memory", "max_segments", "diagnostics"):
        if getattr(args, flag):
            raise UserError(f"--{flag} needs a trained model (--workdir); heuristics have none.")
    if not args.data:
        raise UserError("A heuristic needs --data=DIR, a directory made by launch.prepare.")
    data = DataConfig(
        protocol=args.protocol or "last_10",
        split_time=args.split_time,
        validation_days=args.validation_days,
        holdout_fraction=args.holdout_fraction,
    )
    evaluation = evaluate_heuristic(
        args.heuristic,
        open_dataset(args.data),
        split=args.split,
        data=data,
        window=args.window,
        half_life=args.half_life,
        max_users=args.max_users,
    )
    settings = {"window": args.window or None, "half_life": args.half_life or None}
    settings |= protocol_settings(data)
    return evaluation.record(config=settings, git_commit=git_commit())


def main(_) -> None:
    args = flags.FLAGS
    if bool(args.workdir) == bool(args.heuristic):
        raise UserError("Pass one of --workdir=DIR and --heuristic=NAME.")
    diagnostics = None
    if args.workdir:
        record, diagnostics = evaluate_workdir(args)
    else:
        record = evaluate_baseline(args)
    print(setting_line(record))
    print(metrics_table([record]))
    if diagnostics:
        print(f"\n{diagnostics_table(diagnostics)}")
    if args.json:
        write_records(args.json, [record])
        print(f"written to {args.json}")


if __name__ == "__main__":
    cli.run(main)
