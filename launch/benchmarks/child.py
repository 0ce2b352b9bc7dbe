"""The process of one row: builds the work and measures it on request.

`driver.Child` starts it. It reads JSON lines: first the case, then "run" for each repetition, at last
"finish", and answers each with a JSON line. One process per row gives every row a peak memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from launch.benchmarks.case import Work
from rec2pm_jax import cli

_REPETITION_S = 0.3  # short calls are repeated until a repetition takes about this long


def build(case: dict[str, Any]) -> Work:
    """Return the work that a case names in `build`, made with its `options`."""
    module, function = case["build"].split(":")
    return getattr(importlib.import_module(f"launch.benchmarks.{module}"), function)(
        **case["options"]
    )


def forget_peak() -> None:
    """Make `measure_peak_rss` start from now, if the system can: compiling is not part of the work."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def measure_peak_rss() -> int:
    """Return the most bytes of physical memory since `forget_peak`, or since the start without it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def repeat(work: Work, calls: int) -> dict[str, float]:
    """Return wall and CPU seconds per call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        work.run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"wall_s": wall / calls, "cpu_s": cpu / calls}


def main() -> None:
    # Output of libraries goes to stderr; stdout is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        serve(answer)
    except Exception as error:  # recorded in the row; other rows continue
        answer({"error": f"{type(error).__name__}: {error}"})


def serve(answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer the lines of stdin until "finish"."""
    case = json.loads(sys.stdin.readline())
    cli.use_compilation_cache(case["cache"])
    work = build(case)
    first, second = repeat(work, 1), repeat(work, 1)
    building = measure_peak_rss()
    forget_peak()
    calls = max(1, round(_REPETITION_S / max(second["wall_s"], 1e-6)))
    answer({"platform": jax.default_backend(), "device": jax.devices()[0].device_kind})
    for line in sys.stdin:
        if json.loads(line) == "run":
            answer(repeat(work, calls))
            continue
        peak = measure_peak_rss()  # before counting FLOPs, which traces everything again
        fields: dict[str, Any] = {
            "peak_rss_bytes": peak,
            "start_rss_bytes": building,
            "first_s": first["wall_s"],
            "flops": None,
        }
        if work.flops:
            try:
                fields["flops"] = work.flops()
            except ValueError as error:  # the measured time still counts
                fields["flops_unknown"] = str(error)
        answer({"tokens": work.tokens, "fields": fields | work.fields})
        break


if __name__ == "__main__":
    main()
