"""Reproduces a suite of `results/`: trains what is missing, evaluates it, writes tables and figures.

    python -m launch.reproduce --suite=main --data=data --workdir=runs/reproduce --max_hours=3

Runs whose records are in `RESULTS/SUITE.json` already, for the same configuration, budget and data,
are skipped; a run that was stopped goes on from its last checkpoint. Every run is a process of its
own on a core of its own (`--workers`), which is faster on a CPU than one run on all cores. After
every run `SUITE.json`, `SUITE.md`, the figures and the per-user values behind the intervals
(`SUITE.users/`) are written anew, so that stopping at any time loses nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from launch import processes, summaries
from launch.run_one import budget, outputs, write_users
from launch.runs import heuristics
from launch.suites import DATASETS, SUITES, Run, runs_of
from rec2pm_jax import cli
from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import config_hash
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.splits import settings as protocol_settings
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluate.record import write_records
from rec2pm_jax.evaluate.report import display_name
from rec2pm_jax.lock import alone_in

WITH_HEURISTICS = ("main", "ablation")  # the others compare models with each other

_POLL_S = 2.0
_STOP_S = 30.0  # how long a run may take to end when asked to


class Results:
    """`RESULTS/SUITE.json` and the per-user arrays beside it."""

    def __init__(self, folder: str | Path, suite: str):
        """Reads what an earlier call left.

        Raises:
          UserError: the file is not a list of a suite's records.
        """
        self.suite = suite
        self.path = Path(folder) / f"{suite}.json"
        self.users = Path(folder) / f"{suite}.users"
        self.records: list[dict] = []
        if self.path.exists():
            try:
                self.records = json.loads(self.path.read_text())
            except json.JSONDecodeError as error:
                raise UserError(f"{self.path} is not JSON ({error}); move it away.") from error
            if not all(isinstance(r, dict) and {"run", "variant"} <= set(r) for r in self.records):
                raise UserError(f"{self.path} holds other things than a suite's; move it away.")

    def has(self, run: Run, data_hash: str) -> bool:
        """Whether the run is here: same configuration, budget, seed and data."""
        mine = [r for r in self.records if r["run"] == run.name]
        return self.users_of(run.name).exists() and any(_is_of(r, run, data_hash) for r in mine)

    def drop_stale(self, runs: Sequence[Run], hashes: Mapping[str, str]) -> list[str]:
        """Drops what a table would mix with the suite as it is: other runs, configurations or data.

        Args:
          runs: the whole suite. hashes: content hashes by dataset; of others any is right.

        Returns:
          Names of the runs that were dropped.
        """
        by_name = {run.name: run for run in runs}
        stale = []
        for record in self.records:
            if record["config_hash"] is None:  # heuristics look after themselves
                continue
            run = by_name.get(record["run"])
            if run is None or not _is_of(record, run, hashes.get(run.dataset)):
                stale.append(record)
        names = list(dict.fromkeys(record["run"] for record in stale))
        if names:
            self.records = [record for record in self.records if record not in stale]
            write_records(self.path, self.records)
            for name in names:
                self.users_of(name).unlink(missing_ok=True)
        return names

    def take(self, run: Run, workdir: Path) -> None:
        """Moves the finished run's records in, in place of older ones of the same name."""
        records, users = outputs(self.suite, run, workdir)
        new = json.loads(records.read_text())
        path = self.users_of(run.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(users, path.with_name(f".{path.name}"))
        os.replace(path.with_name(f".{path.name}"), path)
        self.records = [r for r in self.records if r["run"] != run.name] + new
        write_records(self.path, self.records)

    def take_heuristics(self, name: str, path: Path, config: Config) -> None:
        """Adds the heuristics of a dataset, unless they are here for the same data and protocol."""
        dataset = open_dataset(path)
        kept = [r for r in self.records if r["run"].startswith(f"{name}/heuristics/")]
        setting = {"data_hash": dataset.content_hash, "protocol": config.data.protocol}
        setting |= protocol_settings(config.data)
        windows = {r["config"]["window"] for r in kept} - {None}
        same = all(setting.items() <= (r["config"] | r).items() for r in kept)
        if same and windows == {config.data.read_length}:
            return
        self.records = [r for r in self.records if r not in kept]
        for result in heuristics(config, dataset):
            variant = display_name(result.record)
            result.record.update(run=f"{name}/heuristics/{variant}", variant=variant)
            users = self.users_of(result.record["run"])
            users.parent.mkdir(parents=True, exist_ok=True)
            write_users(users, [result])
            self.records.append(result.record)
        write_records(self.path, self.records)

    def users_of(self, name: str) -> Path:
        return self.users / (re.sub(r"[^\w.=-]+", "_", name) + ".npz")


def _is_of(record: Mapping[str, Any], run: Run, data_hash: str | None) -> bool:
    """Whether a record is of the run as it would be made now; None: on whatever data."""
    return (
        record["config_hash"] == config_hash(run.config)
        and record["budget"] == budget(run)
        and data_hash in (None, record["data_hash"])
    )


class Worker:
    """A run in a process of its own."""

    def __init__(self, run: Run, core: int | None, suite: str, data: str, workdir: Path):
        self.run, self.core = run, core
        self.directory = workdir / run.name
        self.directory.mkdir(parents=True, exist_ok=True)
        env = processes.environment("tuned", single_thread=core is not None)
        command = [sys.executable, "-m", "launch.run_one", f"--suite={suite}", f"--run={run.name}"]
        command += [f"--data={data}", f"--workdir={workdir}"]
        self.log = self.directory / "log.txt"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        if core is not None:
            processes.pin(self.process.pid, {core})

    def steps(self) -> int:
        """Steps the run has logged so far."""
        try:
            last = (self.directory / "train" / "train.jsonl").read_text().splitlines()[-1]
            return json.loads(last)["step"]
        except (OSError, IndexError, ValueError):  # not begun, or a row half written
            return 0

    def check(self) -> None:
        """Raises UserError if the finished process failed."""
        if self.process.returncode:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(
                f"{self.run.name} failed (exit code {self.process.returncode}): "
                f"{' '.join(tail)[-300:]} The whole log: {self.log}"
            )

    def stop(self) -> None:
        """Ends the process; its last checkpoint stands."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def reproduce(
    suite: str,
    data: str,
    workdir: str | Path,
    results: str | Path,
    *,
    workers: int = 0,
    max_hours: float = 0.0,
    only: str = "",
) -> int:
    """Runs what is missing of a suite and writes its results; see the module.

    Args:
      workers: runs at a time; 0: one per core. max_hours: stop then; 0: never.
      only: a regular expression that run names must contain.

    Returns:
      How many runs of the selection are still missing.

    Raises:
      UserError: an unknown suite, a dataset that is not prepared, no run that matches `only`, more
        workers than cores, another process at the same results, or a run that failed (the other runs
        of that moment are stopped at their last checkpoint).
    """
    whole = runs_of(suite)
    runs = [run for run in whole if re.search(only, run.name)]
    if not runs:
        raise UserError(f"--only={only}: no run of suite {suite} has such a name.")
    cores = processes.usable_cores()
    if workers > len(cores):
        raise UserError(f"--workers={workers}: this process may use {len(cores)} cores only.")
    cores = [None] if workers == 1 else cores[: workers or None]
    hashes = {name: _data_hash(data, name) for name in {run.dataset for run in runs}}
    with alone_in(Path(results) / f"{suite}.users"):  # results are written as a whole
        found = Results(results, suite)
        stale = found.drop_stale(whole, hashes)
        if stale:
            print(f"dropped from {found.path}, as the suite has changed: {', '.join(stale)}")
        todo = [run for run in runs if not found.has(run, hashes[run.dataset])]
        print(f"suite {suite}: {len(runs)} runs, {len(runs) - len(todo)} done, {len(todo)} to do")
        deadline = time.time() + 3600 * max_hours if max_hours else float("inf")
        if suite in WITH_HEURISTICS:
            for name in dict.fromkeys(run.dataset for run in runs):
                of_dataset = next(run for run in whole if run.dataset == name)
                found.take_heuristics(name, Path(data) / name, of_dataset.config)
        missing = _work_off(todo, found, cores, data, Path(workdir), deadline)
        summaries.write(suite, found)
    return missing


def _work_off(
    todo: Sequence[Run],
    found: Results,
    cores: Sequence[int | None],
    data: str,
    workdir: Path,
    deadline: float,
) -> int:
    """A run at a time per core until all are done or time is up; how many are missing then."""
    waiting, active = list(todo), []
    bar = tqdm(total=sum(r.config.train.steps for r in todo), unit="step", smoothing=0.02)
    finished = 0
    try:
        while (waiting or active) and time.time() <= deadline:
            while waiting and len(active) < len(cores):
                core = next(c for c in cores if c not in [w.core for w in active])
                active.append(Worker(waiting.pop(0), core, found.suite, data, workdir))
            time.sleep(_POLL_S)
            for worker in [w for w in active if w.process.poll() is not None]:
                worker.check()
                active.remove(worker)
                finished += worker.run.config.train.steps
                found.take(worker.run, workdir)
                summaries.write(found.suite, found)
                tqdm.write(f"done: {worker.run.name}")
            bar.n = finished + sum(worker.steps() for worker in active)
            bar.set_postfix_str(", ".join(w.run.name.split("/", 1)[1] for w in active))
    finally:
        for worker in active:
            worker.stop()
        bar.close()
    return len(waiting) + len(active)


def _data_hash(data: str, name: str) -> str:
    path = Path(data) / name
    try:
        return open_dataset(path).content_hash
    except UserError as error:
        raise UserError(
            f"{error} Suites expect it at {path}: python -m launch.prepare "
            f"{DATASETS[name].prepare} --output_dir={path}"
        ) from error


def main(_) -> None:
    args = flags.FLAGS
    # So that a terminated call ends its runs too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.time()
    missing = reproduce(
        args.suite,
        args.data,
        args.workdir,
        args.results,
        workers=args.workers,
        max_hours=args.max_hours,
        only=args.only,
    )
    print(f"{time.time() - began:.0f} s; tables in {Path(args.results) / args.suite}.md")
    if missing:
        print(f"{missing} runs are still to do: the same command goes on with them")


def define_flags(names: Sequence[str] = SUITES) -> None:
    flags.DEFINE_enum("suite", None, names, "What to reproduce.")
    flags.DEFINE_string("data", None, "Directory that holds the prepared datasets by name.")
    flags.DEFINE_string("workdir", None, "Directory of all runs.")
    flags.DEFINE_string("results", "results", "Directory of tables, records and figures.")
    flags.DEFINE_integer("workers", 0, "Runs at a time; 0: one per core.", 0)
    flags.DEFINE_float("max_hours", 0.0, "Stop after so many hours; 0: never.", 0.0)
    cli.define_only("runs")
    flags.mark_flags_as_required(["suite", "data", "workdir"])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
