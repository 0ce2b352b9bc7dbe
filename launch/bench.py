"""Measure speed and memory and write a record.

    python -m launch.bench --suite=train --json=train.json --threads=1

Every row runs in a separate process. Rows of a group are measured in alternation after a warm-up,
together with a matrix product as the yardstick. The record holds

  wall_s, cpu_s    medians of the repetitions
  flops            of the matrix products, counted in the jaxpr, loops by their trip counts
  mfu              their share of the yardstick's rate
  peak_rss_bytes   of the measured calls
  start_rss_bytes  of building and compiling
  first_s          the first call with its compilation

With `--threads=1` rows are pinned to one core; then compare CPU seconds on a busy machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags

from launch.benchmarks import (
    data,
    driver,
    infer,
    inputs,
    prepare,
    processes,
    recommend,
    report,
    scale,
    serve,
    stream,
    topk,
    train,
)
from rec2pm_jax import cli
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.lock import only_writer_of

SUITES = {  # name -> (smoke) -> cases
    "train": train.make_cases,
    "infer": infer.make_cases,
    "scale": scale.make_cases,
    "topk": topk.make_cases,
    "input": inputs.make_cases,
    "torch": train.make_torch_cases,
}
# Suites that measure a whole command: name -> (smoke) -> rows
COMMANDS = {c.__name__.split(".")[-1]: c.measure_rows for c in (prepare, recommend, serve, stream)}
SIZES = {"data": data.measure_rows}  # name -> (smoke, only, directory) -> rows


def define_flags() -> None:
    flags.DEFINE_enum("suite", None, [*SUITES, *COMMANDS, *SIZES], "What to measure.")
    flags.DEFINE_string("json", None, "File for the record.")
    flags.DEFINE_integer("threads", 0, "Cores to use, the first of this process's; 0: all.", 0)
    flags.DEFINE_integer("repeats", 5, "Measured repetitions of every row.", 1)
    cli.define_only("rows")
    flags.DEFINE_string("directory", "", "Where the datasets of --suite=data stay; empty: nowhere.")
    flags.DEFINE_enum(
        "allocator", "tuned", processes.ALLOCATORS, "tuned: glibc keeps the memory it was given."
    )
    flags.DEFINE_float("max_gb", 0.0, "End rows that use more memory; 0: 60 % of what is free.", 0)
    flags.DEFINE_boolean("smoke", False, "Tiny sizes: whether it runs, not how fast.")
    flags.mark_flags_as_required(["suite", "json"])


def main(_) -> None:
    args = flags.FLAGS
    settings = driver.Settings(
        threads=args.threads,
        allocator=args.allocator,
        repeats=args.repeats,
        cache=args.compilation_cache,
        max_rss=args.max_gb * 1e9 or 0.6 * driver.free_memory(),
    )
    with only_writer_of(Path(args.json)):
        if args.suite in SIZES:
            _record(settings, SIZES[args.suite](args.smoke, args.only, args.directory))
        elif args.suite in COMMANDS:
            _record(settings, COMMANDS[args.suite](args.smoke))
        else:
            _measure_rows(settings)


def _measure_rows(settings: driver.Settings) -> None:
    args = flags.FLAGS
    cases = [case for case in SUITES[args.suite](args.smoke) if re.search(args.only, case.name)]
    if not cases:
        names = "\n".join(case.name for case in SUITES[args.suite](args.smoke))
        raise UserError(
            f"--only={args.only}: no row of suite {args.suite} has such a name: {names}"
        )
    for record in driver.measure(args.suite, cases, settings):
        write_records(args.json, record)  # after every group, so a stopped run keeps its rows
    print(report.format_setting(record), report.format_record(record), sep="\n")
    print(f"written to {args.json}")


def _record(settings: driver.Settings, rows: Iterable[dict[str, Any]]) -> None:
    args = flags.FLAGS
    env = driver.describe_environment(settings)
    record: dict[str, Any] = {"suite": args.suite, "env": env, "rows": []}
    for row in rows:
        record["rows"].append(row)
        write_records(args.json, record)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    print(f"written to {args.json}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
