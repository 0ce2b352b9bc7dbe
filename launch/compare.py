"""Train several methods under one preset, or compare runs that are trained: tables and intervals.

    python -m launch.compare --config=synthetic --data=data/synthetic --workdir=runs/synthetic \\
        --json=runs/synthetic.json --png=runs/synthetic.png

The methods differ in `method.name` alone: same backbone, data, steps and optimiser. Every run lives in
WORKDIR/NAME; a stopped run is resumed and a complete one is skipped. For several seeds and datasets see
`launch.reproduce`.

    python -m launch.compare --runs=runs/a,runs/b --json=runs/a_b.json

compares runs of any kind on the same held-out events, each pair by a paired bootstrap over users.
"""

from __future__ import annotations

import time

from absl import flags

from launch.configs.flags import define_config, get_config
from launch.configs.measure_flags import define_measures, get_measures
from launch.experiments.comparison import (
    DEFAULT_METHODS,
    compare_methods,
    compare_runs,
    format_report,
    format_runs,
)
from launch.experiments.figures import draw_comparison
from rec2pm_jax import cli
from rec2pm_jax.data.splits import SPLITS
from rec2pm_jax.devices import describe_devices
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.methods.registry import METHODS
from rec2pm_jax.runs import Result


def define_flags() -> None:
    define_config(required=False)
    define_measures()
    flags.DEFINE_string("data", None, "Directory of a prepared dataset (see launch.prepare).")
    flags.DEFINE_string("workdir", None, "Directory that holds one run per method.")
    flags.DEFINE_string("json", "", "File for the list of records.")
    flags.DEFINE_string("png", "", "File for the figure.")
    flags.DEFINE_list("methods", list(DEFAULT_METHODS), "Methods to train.")
    flags.DEFINE_list("runs", [], "Instead of training: workdirs of runs, which are compared.")
    flags.DEFINE_enum("split", "test", SPLITS, "Which targets to rank, with --runs.")
    flags.DEFINE_string("target_types", "", "Event types that are targets, with --runs.")
    flags.register_multi_flags_validator(
        ["runs", "config", "data", "workdir"],
        lambda given: (
            bool(given["runs"]) or all(given[name] for name in ("config", "data", "workdir"))
        ),
        "give --runs=RUN,RUN, or --config, --data and --workdir",
    )
    flags.register_multi_flags_validator(
        ["runs", "config", "workdir"],
        lambda given: not (given["runs"] and (given["config"] or given["workdir"])),
        "--runs compares what is trained: leave out --config and --workdir",
    )


def main(_) -> None:
    args = flags.FLAGS
    measures = get_measures(args)
    if args.runs:
        results = compare_runs(
            args.runs, args.data, args.split, measures, args.target_types or None
        )
        print(f"devices: {describe_devices()}")
        _finish(results, format_runs(results))
        return
    if args.target_types:
        raise UserError("--target_types is for --runs; to train, use --config.loss.target_types.")
    unknown = [name for name in args.methods if name not in METHODS.names()]
    if unknown:
        raise UserError(
            f"--methods: {unknown[0]} is unknown; choose from {', '.join(METHODS.names())}."
        )
    began = time.time()
    results = compare_methods(get_config(), args.data, args.workdir, args.methods, measures)
    _finish(results, f"\n{format_report(results)}\n{time.time() - began:.0f} s in all")


def _finish(results: list[Result], report: str) -> None:
    """Print the report, and write the records and the figure."""
    args = flags.FLAGS
    print(report)
    if args.json:
        write_records(args.json, [row.record for row in results])
        print(f"records in {args.json}")
    if args.png:
        draw_comparison(results, args.png)
        print(f"figure in {args.png}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
