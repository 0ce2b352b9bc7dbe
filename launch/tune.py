"""Search fields of the configuration: random or TPE, with successive halving on validation.

    python -m launch.tune --config=demo --data=data/complete_journey_types --workdir=runs/tune \\
        --search=optim.learning_rate=1e-3..2e-2:log --search=model.dropout=0..0.3 \\
        --search=method.slots=2,4,8 --max_hours=1

The best setting is written as a preset, `WORKDIR/best.py`, beside a page, records and a figure of the
search. The same command resumes a search; a larger budget continues it. Test targets are never read.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

from absl import flags

from launch.configs.flags import define_config, get_changes, get_config
from rec2pm_jax import cli
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.errors import UserError
from rec2pm_jax.lock import alone_in
from rec2pm_jax.plotting import pyplot
from rec2pm_jax.training.run_checks import fit_to_data

define_config()
flags.DEFINE_string("data", None, "Directory of a prepared dataset (see launch.prepare).")
flags.DEFINE_string("workdir", None, "Directory of the search: its study, runs and results.")
flags.DEFINE_multi_string(
    "search", None, "FIELD=LOW..HIGH, FIELD=LOW..HIGH:log or FIELD=A,B,C; once for each field."
)
flags.DEFINE_float("max_hours", None, "Stop after so many hours; what runs then can resume.", 0.0)
flags.DEFINE_integer("max_runs", None, "Start at most so many runs, all calls together.", 1)
flags.DEFINE_integer("workers", 0, "Runs at a time; 0: one per core.", 0)
flags.DEFINE_enum("sampler", "tpe", ["tpe", "random"], "How settings are chosen.")
flags.DEFINE_integer("seed", 0, "Of the sampler.", 0, 2**31)
flags.DEFINE_integer("reduction", 3, "After a rung one of so many runs continues.", 2)
flags.DEFINE_integer("rungs", 3, "Times that a run is compared, its end included.", 1, 10)
flags.mark_flags_as_required(["data", "workdir", "search"])


def main(_: list[str]) -> None:
    args = flags.FLAGS
    if not (args.max_hours or args.max_runs):
        raise UserError("Give a budget: --max_hours, --max_runs or both.")
    if not args.workdir:
        raise UserError("--workdir is empty: name a directory.")
    # So that a terminated call ends its runs too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        from launch.tuning.figure import draw_search
        from launch.tuning.halving import list_rungs
        from launch.tuning.results import collect_runs, find_best, write_results
        from launch.tuning.search import Budget, Search
        from launch.tuning.space import parse_space
        from launch.tuning.study import Plan, open_study
    except ImportError as error:
        raise UserError(
            f"launch.tune needs {error.name}: pip install 'rec2pm_jax[tune]'."
        ) from error
    config, changes = get_config(), get_changes()
    preset = str(args["config"].value)
    if os.path.isfile(preset):
        preset = os.path.abspath(preset)
    dimensions = parse_space(args.search, preset, changes)
    dataset = open_dataset(args.data)
    fit_to_data(config, dataset)
    rungs = list_rungs(config.train.steps, args.reduction, args.rungs)
    plan = Plan(preset, changes, config, dimensions, rungs, args.reduction)
    workdir = Path(args.workdir).absolute()
    data = os.path.abspath(args.data)
    train_flags = [f"--data={data}", f"--compilation_cache={args.compilation_cache}"]
    pyplot()  # fails at once if it is not installed
    with alone_in(workdir):
        study, pruner = open_study(plan, workdir, dataset.content_hash, args.sampler, args.seed)
        write = partial(write_results, plan, study, workdir, args.data)
        try:
            search = Search(plan, study, pruner, workdir, train_flags, write)
            search.run(Budget(args.max_hours, args.max_runs, args.workers))
        finally:
            write()
            runs = collect_runs(study)
            draw_search(plan, runs, workdir / "tune.png")
    best = find_best(runs)
    print(f"page, records and figure: {workdir / 'tune'}.md, .json, .png")
    if best is None:
        print("no run is complete: the same command continues")
        return
    print(
        f"best: run {best.number}, validation NDCG@10 {100 * (best.value or 0):.2f} %; "
        f"--config={workdir / 'best.py'}"
    )


if __name__ == "__main__":
    cli.run(main)
