"""Runs what is missing of a suite, one run per core, and keeps its results up to date."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from launch.benchmarks import processes
from launch.experiments import summaries
from launch.experiments.results_file import SuiteResults
from launch.experiments.run import DATASETS, Run
from launch.experiments.suites import list_runs
from launch.experiments.worker import Worker
from rec2pm_jax.data.dataset import INFO_FILE, open_dataset
from rec2pm_jax.errors import UserError
from rec2pm_jax.lock import alone_in

WITH_HEURISTICS = (
    "main",
    "ablation",
    "last_basket",
)  # the other suites compare models with each other

_POLL_S = 2.0


@dataclasses.dataclass(frozen=True)
class Job:
    """A call of `launch.reproduce`.

    Attributes:
      suite: name of a suite.
      data: directory of the prepared datasets, each under its name.
      workdir: directory of all runs.
      results: directory of records, tables and figures.
      workers: runs at a time; 0: one per core.
      max_hours: when to stop; 0: never.
      only: a regular expression that names of runs must contain.
    """

    suite: str
    data: str
    workdir: Path
    results: Path
    workers: int = 0
    max_hours: float = 0.0
    only: str = ""


def reproduce(job: Job) -> int:
    """Run what is missing of a suite and write its results.

    Returns:
      How many runs of the selection are still missing.

    Raises:
      UserError: an unknown suite, a dataset that is not prepared, no run that matches `only`, more
        workers than cores, another process that writes the same results, or a run that failed. The
        other runs of that moment are stopped after a checkpoint.
    """
    whole = list_runs(job.suite)
    runs = [run for run in whole if re.search(job.only, run.name)]
    if not runs:
        raise UserError(f"--only={job.only}: no run of suite {job.suite} has such a name.")
    runs = _leave_out_optional(runs, Path(job.data))
    cores = processes.choose_cores(job.workers)
    hashes = {name: _data_hash(job.data, name) for name in {run.dataset for run in runs}}
    with alone_in(job.results / f"{job.suite}.users"):  # results are written as a whole
        found = SuiteResults(job.results, job.suite)
        stale = found.drop_stale(whole, hashes)
        if stale:
            print(f"dropped from {found.path}, as the suite has changed: {', '.join(stale)}")
        todo = [run for run in runs if not found.has(run, hashes[run.dataset])]
        print(
            f"suite {job.suite}: {len(runs)} runs, {len(runs) - len(todo)} done, {len(todo)} to do"
        )
        deadline = time.time() + 3600 * job.max_hours if job.max_hours else float("inf")
        if job.suite in WITH_HEURISTICS:
            for name in dict.fromkeys(run.dataset for run in runs):
                config = next(run.config for run in whole if run.dataset == name)
                found.add_heuristics(name, Path(job.data) / name, config)
        missing = _run_all(todo, found, cores, job, deadline)
        summaries.write(found)
    return missing


def _run_all(
    todo: Sequence[Run],
    found: SuiteResults,
    cores: Sequence[int | None],
    job: Job,
    deadline: float,
) -> int:
    """Run one run at a time per core until all are done or time is up; return how many are missing."""
    waiting, active = list(todo), list[Worker]()
    bar = tqdm(total=sum(r.config.train.steps for r in todo), unit="step", smoothing=0.02)
    finished = 0
    try:
        while (waiting or active) and time.time() <= deadline:
            while waiting and len(active) < len(cores):
                core = next(c for c in cores if c not in [w.core for w in active])
                active.append(Worker(job.suite, waiting.pop(0), core, job.data, job.workdir))
            time.sleep(_POLL_S)
            for worker in [w for w in active if w.process.poll() is not None]:
                worker.check()
                active.remove(worker)
                finished += worker.run.config.train.steps
                found.add_run(worker.run, job.workdir)
                summaries.write(found)
                tqdm.write(f"done: {worker.run.name}")
            bar.n = finished + sum(worker.count_steps() for worker in active)
            bar.set_postfix_str(", ".join(w.run.name.split("/", 1)[1] for w in active))
    finally:
        for worker in active:
            worker.stop()
        bar.close()
    return len(waiting) + len(active)


def _leave_out_optional(runs: Sequence[Run], data: Path) -> list[Run]:
    """Return the runs without those on optional datasets that are not prepared."""
    absent = {
        run.dataset
        for run in runs
        if DATASETS[run.dataset].optional and not (data / run.dataset / INFO_FILE).is_file()
    }
    for name in sorted(absent):
        print(f"left out, as {data / name} is not prepared: the runs on {DATASETS[name].title}")
    return [run for run in runs if run.dataset not in absent]


def _data_hash(data: str, name: str) -> str:
    path = Path(data) / name
    try:
        return open_dataset(path).content_hash
    except UserError as error:
        raise UserError(
            f"{error} Suites expect it at {path}: python -m launch.prepare "
            f"{DATASETS[name].prepare} --output_dir={path}"
        ) from error
