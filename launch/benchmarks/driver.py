"""Runs the processes of rows: builds them, measures them in alternation, makes records."""

from __future__ import annotations

import functools
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from launch.benchmarks import processes
from launch.benchmarks.case import FIELDS, Case
from rec2pm_jax.provenance import git_commit

_POLL_S = 0.1

Row = dict[str, Any]


class Settings(NamedTuple):
    """How rows are measured.

    Attributes:
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
        """The cores that rows run on."""
        return processes.list_usable_cores()[: self.threads or None]


class RowError(Exception):
    """A row that could not be measured; the message names the reason."""


class Child:
    """The process of one row, built and warmed up; see `child`.

    Attributes:
      repetitions: wall and CPU seconds per call of every repetition.
      device: platform and device as JAX names them.
    """

    def __init__(self, case: Case, settings: Settings):
        """Start the process, build the work and warm it up.

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
        assert self.process.stdin and self.process.stdout  # as they are pipes
        self._input, self._output = self.process.stdin, self.process.stdout
        processes.pin(self.process.pid, set(settings.cores))
        self.device = self._ask(
            {"build": case.build, "options": case.options, "cache": settings.cache}
        )

    def repeat(self) -> None:
        """Measure one repetition."""
        self.repetitions.append(self._ask("run"))

    def finish(self) -> dict[str, Any]:
        """Return tokens and further fields, and end the process."""
        answer = self._ask("finish")
        self.close()
        return answer

    def close(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        for file in (self._input, self._output, self.stderr):
            file.close()

    def _ask(self, message: Any) -> Any:
        try:
            self._input.write(json.dumps(message).encode() + b"\n")
            self._input.flush()
            line = self._read_line()
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

    def _read_line(self) -> bytes:
        """Return the answer; empty if the process ended without one."""
        began = time.monotonic()
        while not select.select([self._output], [], [], _POLL_S)[0]:
            if self._measure_rss() > self.settings.max_rss:
                self.close()
                raise RowError(f"needs more than {self.settings.max_rss / 1e9:.1f} GB")
            if time.monotonic() - began > self.settings.timeout_s:
                self.close()
                raise RowError(f"took longer than {self.settings.timeout_s:.0f} s")
        return self._output.readline()

    def _measure_rss(self) -> int:
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


def measure(suite: str, cases: Sequence[Case], settings: Settings) -> Iterator[dict[str, Any]]:
    """Measure all rows; yield the record after every group, complete in the end.

    Utilisation is relative to the best matmul rate of the run, which a separate process measures in
    alternation with the rows of each group.

    Args:
      suite: name of the suite.
      cases: rows, those of a group next to each other.
      settings: how they are measured.
    """
    rows: list[Row] = []
    peaks: dict[str, float] = {}
    env = describe_environment(settings)
    env |= {"matmul_flops_per_s": peaks, "platform": None, "device": None}
    for group, iterator in groupby(cases, key=lambda case: case.group):
        members = list(iterator)
        dtypes = sorted({case.row.get("dtype") or "float32" for case in members})
        references = [
            Case(dtype, group, "peak:multiply_matrices", {"dtype": dtype}, {"dtype": dtype})
            for dtype in dtypes
        ]
        found, device = _measure_group([*references, *members], settings)
        env |= device
        by_cpu = settings.threads == 1 and env["platform"] == "cpu"
        env["mfu_clock"] = clock = "cpu_s" if by_cpu else "wall_s"
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
        yield {"suite": suite, "env": env, "rows": rows}


def _measure_group(cases: Sequence[Case], settings: Settings) -> tuple[list[Row], dict[str, Any]]:
    """Return a row per case, in order, and `platform` and `device` as JAX names them."""
    children: dict[str, Child] = {}
    rows: dict[str, Row] = {
        case.name: {"name": case.name, "best": {}, **case.row} for case in cases
    }

    def attempt(name: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except RowError as error:
            children.pop(name, None)
            rows[name]["error"] = str(error)
            tqdm.write(f"{name}: {error}", file=sys.stderr)
            return None

    try:
        for case in tqdm(cases, desc=f"{cases[0].group}: building", leave=False, disable=None):
            child = attempt(case.name, functools.partial(Child, case, settings))
            if child is not None:
                children[case.name] = child
        repeats = range(settings.repeats)
        for _ in tqdm(repeats, desc=f"{cases[0].group}: repetitions", leave=False, disable=None):
            for name, child in list(children.items()):
                attempt(name, child.repeat)
        device: dict[str, Any] = next((child.device for child in children.values()), {})
        for name, child in list(children.items()):
            answer = attempt(name, child.finish)
            if answer is not None:
                rows[name] |= _summarise(child.repetitions, answer)
    finally:
        for child in children.values():
            if child.process.poll() is None:
                child.close()
    return list(rows.values()), device


def _summarise(repetitions: Sequence[dict[str, float]], answer: dict[str, Any]) -> Row:
    """Return the fields of a row: medians of its repetitions, and what its process answered."""
    clocks = ("wall_s", "cpu_s")
    row: Row = {clock: statistics.median(r[clock] for r in repetitions) for clock in clocks}
    row["best"] = {clock: min(r[clock] for r in repetitions) for clock in clocks}
    row |= answer["fields"]
    if answer["tokens"]:
        row["tokens_per_s"] = answer["tokens"] / row["wall_s"]
    return row


def describe_environment(settings: Settings) -> dict[str, Any]:
    """Return where and how a record is made."""
    return {
        "cpu": _read_cpu_name(),
        "cores": os.cpu_count(),
        "threads": settings.threads or len(settings.cores),
        "jax": jax.__version__,
        "commit": git_commit(),
        "allocator": settings.allocator,
        "repeats": settings.repeats,
        "load": round(os.getloadavg()[0], 2),
        "flops": "matrix products of the jaxpr, a scan's by its trip count; no elementwise work",
    }


def _read_cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def free_memory() -> float:
    """Return the free memory of this machine in bytes; infinity where it cannot be told."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return float("inf")
