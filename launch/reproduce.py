"""Reproduce a suite of results: train what is missing, evaluate it, write tables and figures.

    python -m launch.reproduce --suite=main --data=data --workdir=runs/reproduce --max_hours=3

Runs whose records are in `RESULTS/SUITE.json` for the same configuration, budget and data are skipped.
A stopped run resumes from its last checkpoint. Every run is a process on its own core (`--workers`),
which is faster on a CPU than one run on all cores. After every run `SUITE.json`, `SUITE.md`, the
figures and the per-user values behind the intervals (`SUITE.users/`) are rewritten, so a stop loses
nothing.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from absl import flags

from launch.experiments.scheduler import Job, reproduce
from launch.experiments.suites import SUITES
from rec2pm_jax import cli


def define_flags() -> None:
    flags.DEFINE_enum("suite", None, SUITES, "What to reproduce.")
    flags.DEFINE_string("data", None, "Directory that holds the prepared datasets by name.")
    flags.DEFINE_string("workdir", None, "Directory of all runs.")
    flags.DEFINE_string("results", "results", "Directory of tables, records and figures.")
    flags.DEFINE_integer("workers", 0, "Runs at a time; 0: one per core.", 0)
    flags.DEFINE_float("max_hours", 0.0, "Stop after so many hours; 0: never.", 0.0)
    cli.define_only("runs")
    flags.mark_flags_as_required(["suite", "data", "workdir"])


def main(_) -> None:
    args = flags.FLAGS
    # So that a terminated call ends its runs too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.time()
    job = Job(
        suite=args.suite,
        data=args.data,
        workdir=Path(args.workdir),
        results=Path(args.results),
        workers=args.workers,
        max_hours=args.max_hours,
        only=args.only,
    )
    missing = reproduce(job)
    print(f"{time.time() - began:.0f} s; tables in {job.results / job.suite}.md")
    if missing:
        print(f"{missing} runs are still to do: the same command resumes them")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
