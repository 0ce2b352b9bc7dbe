"""Train several methods under one preset, evaluate them beside the heuristics, draw the result.

    python -m launch.compare --config=synthetic --data=data/synthetic --workdir=runs/synthetic \\
        --json=runs/synthetic.json --png=runs/synthetic.png

The methods differ in `method.name` alone: same backbone, data, steps and optimiser. Every run lives in
WORKDIR/NAME; a stopped run is resumed and a complete one is skipped. For several seeds and datasets see
`launch.reproduce`.
"""

from __future__ import annotations

import time

from absl import flags

from launch.configs.flags import define_config, get_config
from launch.experiments.comparison import DEFAULT_METHODS, compare_methods, format_report
from launch.experiments.figures import draw_comparison
from rec2pm_jax import cli
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.methods.registry import METHODS


def define_flags() -> None:
    define_config()
    flags.DEFINE_string("data", None, "Directory of a prepared dataset (see launch.prepare).")
    flags.DEFINE_string("workdir", None, "Directory that holds one run per method.")
    flags.DEFINE_string("json", "", "File for the list of records.")
    flags.DEFINE_string("png", "", "File for the figure.")
    flags.DEFINE_list("methods", list(DEFAULT_METHODS), "Methods to train.")
    flags.mark_flags_as_required(["data", "workdir"])


def main(_) -> None:
    args = flags.FLAGS
    unknown = [name for name in args.methods if name not in METHODS.names()]
    if unknown:
        raise UserError(
            f"--methods: {unknown[0]} is unknown; choose from {', '.join(METHODS.names())}."
        )
    began = time.time()
    results = compare_methods(get_config(), args.data, args.workdir, args.methods)
    print(f"\n{format_report(results)}\n{time.time() - began:.0f} s in all")
    if args.json:
        write_records(args.json, [row.record for row in results])
        print(f"records in {args.json}")
    if args.png:
        draw_comparison(results, args.png)
        print(f"figure in {args.png}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
