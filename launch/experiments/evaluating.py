"""What `launch.evaluate` does with its flags: one run or one heuristic, evaluated."""

from __future__ import annotations

from typing import Any

import jax

from launch.configs.measure_flags import get_measures
from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.data.splits import settings as protocol_settings
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.diagnostics import memory_diagnostics
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.runs import Result, evaluate_run
from rec2pm_jax.training.trained_run import load_run


def evaluate_workdir(args: Any) -> tuple[Result, Dataset]:
    """Evaluate a trained model, with its memory diagnostics if they are asked for.

    Args:
      args: the flags of `launch.evaluate`.

    Returns:
      The evaluation with its record, and the data.

    Raises:
      UserError: flags of heuristics, or as evaluation does.
    """
    if args.window or args.half_life:
        raise UserError("--window and --half_life belong to --heuristic=personal_frequency.")
    if args.split_time:
        raise UserError(
            "--split_time is for a heuristic; a run has its own config.data.split_time."
        )
    measures = get_measures(args)
    run = load_run(
        args.workdir,
        data=args.data or None,
        checkpoint=args.checkpoint,
        memory=args.memory or None,
        devices=args.devices,
    )
    spec = EvalSpec(
        args.split,
        protocol=args.protocol or None,
        memory=args.memory or None,
        max_users=args.max_users or None,
        max_segments=args.max_segments or None,
        batch_size=args.batch_size,
        request_time_known=args.request_time_known,
        target_types=args.target_types or None,
        measures=measures,
    )
    result = evaluate_run(run, spec)
    if args.diagnostics:
        diagnostics = memory_diagnostics(run.method, run.params, run.dataset, spec)
        result.record["diagnostics"] = diagnostics
    return result, run.dataset


def evaluate_baseline(args: Any) -> tuple[Result, Dataset]:
    """Evaluate a heuristic.

    Args, returns: as `evaluate_workdir`.

    Raises:
      UserError: flags of models, no dataset, or as evaluation does.
    """
    for flag in ("memory", "max_segments", "diagnostics"):
        if getattr(args, flag):
            raise UserError(f"--{flag} needs a trained model (--workdir); heuristics have none.")
    if args.devices is not None or jax.process_count() > 1:
        raise UserError("A heuristic runs on the host: leave out --devices, and start one process.")
    if not args.data:
        raise UserError("A heuristic needs --data=DIR, a directory made by launch.prepare.")
    heuristic = Heuristic(args.heuristic, args.window or None, args.half_life or None)
    data = DataConfig(
        protocol=args.protocol or "last_10",
        split_time=args.split_time or None,
        validation_days=args.validation_days,
    )
    spec = EvalSpec(
        args.split,
        max_users=args.max_users or None,
        request_time_known=args.request_time_known,
        target_types=args.target_types or None,
        measures=get_measures(args),
    )
    dataset = open_dataset(args.data)
    evaluation = evaluate_heuristic(heuristic, dataset, spec, data)
    record = evaluation.record(config=protocol_settings(data), git_commit=git_commit())
    return Result(evaluation, record), dataset
