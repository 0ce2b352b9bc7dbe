"""Drives the processes of rows: builds them, measures them in alternation, makes records."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from launch.benchmarks import processes
from launch.benchmarks.case import FIELDS, Case
from rec2pm_jax.provenance import git_commit

PEAK = "matmul"
_POLL_S = 0.1

Row = dict[str, Any]


class Settings(NamedTuple):
    """Attributes:
    threads: cores that rows run on; 0: all of this process's.
    allocator: a key of `processes.ALLOCATORS`.
    repeats: measured repetitions per row, after the warm-up.
    cache: directory of compiled programs, or empty.
    max_rss: bytes a row may use before it is ended.
    timeout_s: seconds a row may take for one answer (building it, or a repetition).
    """

    threads: int = 0
    allocator: str = "default"
    repeats: int = 5
    cache: str = ""
    max_rss: float = float("inf")
    timeout_s: float = 1800.0

    @property
    def cores(self) -> list[int]:
        return processes.list_usable_cores()[: self.threads or None]


class RowError(Exception):
    """A row that could not be measured; the message says why."""


class Child:
    """The process of one row, warmed up: see `child`."""

    def __init__(self, case: Case, settings: Settings):
        """Starts, builds and warms up.

        Raises:
          RowError: it failed, or used more memory or time than allowed.
        """
        self.case, self.settings = case, settings
        self.repetitions: list[dict[str, float]] = []
        self.stderr = tempfile.TemporaryFile()
        env = processes.make_environment(settings.allocator, single_thread=settings.threads == 1)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch.benchmarks.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env=env,
            cwd=Path(__file__).parents[2],
        )
        processes.pin(self.process.pid, set(settings.cores))
        self.where = self._ask(
            {"build": case.build, "options": case.options, "cache": settings.cache}
        )

    def repeat(self) -> None:
        self.repetitions.append(self._ask("run"))

    def finish(self) -> dict[str, Any]:
        answer = self._ask("finish")
        self.close()
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.stderr):
            file.close()

    def _ask(self, message: Any) -> Any:
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            line = self._line()
        except BrokenPipeError:
            line = b""
        if line:
            answer = json.loads(line)
            if "error" in answer:
                self.close()
                raise RowError(answer["error"])
            return answer
        self.process.wait()
        self.stderr.seek(0)
        tail = self.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        self.close()
        raise RowError(f"exit code {self.process.returncode}: {' '.join(tail)[-300:]}")

    def _line(self) -> bytes:
        """The answer; empty if the process ended without one."""
        began = time.monotonic()
        while not select.select([self.process.stdout], [], [], _POLL_S)[0]:
            if self._rss() > self.settings.max_rss:
                self.close()
                raise RowError(f"needs more than {self.settings.max_rss / 1e9:.1f} GB")
            if time.monotonic() - began > self.settings.timeout_s:
                self.close()
                raise RowError(f"took longer than {self.settings.timeout_s:.0f} s")
        return self.process.stdout.readline()

    def _rss(self) -> int:
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


def measure(suite: str, cases: Sequence[Case], settings: Settings) -> Iterator[dict[str, Any]]:
    """Measures all rows; yields the record so far after every group, whole in the end.

    Utilisation is against the best matmul rate of the run, which a process of its own measures in
    alternation with the rows of each group.
    """
    rows: list[Row] = []
    peaks: dict[str, float] = {}
    record = {"suite": suite, "env": environment(settings), "rows": rows}
    record["env"] |= {"matmul_flops_per_s": peaks, "platform": None, "device": None}
    for group, members in groupby(cases, key=lambda case: case.group):
        members = list(members)
        dtypes = sorted({case.row.get("dtype") or "float32" for case in members})
        references = [
            Case(dtype, group, "peak:matmul", {"dtype": dtype}, {"dtype": dtype})
            for dtype in dtypes
        ]
        *found, where = _measure_group([*references, *members], settings)
        record["env"] |= where
        by_cpu = settings.threads == 1 and record["env"]["platform"] == "cpu"
        record["env"]["mfu_clock"] = clock = "cpu_s" if by_cpu else "wall_s"
        for row in found[: len(references)]:
            if row.get(clock):
                rate = row["flops"] / row["best"][clock]
                peaks[row["dtype"]] = max(rate, peaks.get(row["dtype"], 0.0))
        for row in found[len(references) :]:
            del row["best"]
            rows.append(dict.fromkeys(FIELDS) | {"suite": suite} | row)
        for row in rows:
            peak = peaks.get(row["dtype"])
            if row["flops"] and row[clock] and peak:
                row["mfu"] = row["flops"] / row[clock] / peak
        yield record


def _measure_group(cases: Sequence[Case], settings: Settings) -> list[Any]:
    """A row per case, in order, and last `platform` and `device` as JAX names them."""
    children: dict[str, Child] = {}
    rows = {case.name: {"name": case.name, "best": {}, **case.row} for case in cases}

    def attempt(name: str, action) -> Any:
        try:
            return action()
        except RowError as error:
            children.pop(name, None)
            rows[name]["error"] = str(error)
            tqdm.write(f"{name}: {error}", file=sys.stderr)
            return None

    try:
        for case in tqdm(cases, desc=f"{cases[0].group}: building", leave=False, disable=None):
            child = attempt(case.name, lambda case=case: Child(case, settings))
            if child is not None:
                children[case.name] = child
        turns = range(settings.repeats)
        for _ in tqdm(turns, desc=f"{cases[0].group}: repetitions", leave=False, disable=None):
            for name, child in list(children.items()):
                attempt(name, child.repeat)
        where = next((child.where for child in children.values()), {})
        for name, child in list(children.items()):
            answer = attempt(name, child.finish)
            if answer is not None:
                rows[name] |= _figures(child.repetitions, answer)
    finally:
        for child in children.values():
            if child.process.poll() is None:
                child.close()
    return [*rows.values(), where]


def _figures(repetitions: Sequence[dict[str, float]], answer: dict[str, Any]) -> Row:
    clocks = ("wall_s", "cpu_s")
    row = {clock: statistics.median(r[clock] for r in repetitions) for clock in clocks}
    row["best"] = {clock: min(r[clock] for r in repetitions) for clock in clocks}
    row |= answer["fields"]
    if answer["tokens"]:
        row["tokens_per_s"] = answer["tokens"] / row["wall_s"]
    return row


def environment(settings: Settings) -> dict[str, Any]:
    """Where and how a record was made."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": settings.threads or len(settings.cores),
        "jax": jax.__version__,
        "commit": git_commit(),
        "allocator": settings.allocator,
        "repeats": settings.repeats,
        "load": round(os.getloadavg()[0], 2),
        "flops": "matrix products of the jaxpr, a scan's by its turns; no elementwise work",
    }


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None
