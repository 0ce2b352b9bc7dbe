"""A row's own process: builds the work, then measures it whenever it is told to.

Started by `driver.Child`. Reads JSON lines: first the case, then "run" for one repetition, at last
"finish". Answers each with a JSON line. A process per row gives each its own peak memory.
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
    module, function = case["build"].split(":")
    return getattr(importlib.import_module(f"launch.benchmarks.{module}"), function)(
        **case["options"]
    )


def forget_peak() -> None:
    """Makes `peak_rss` start from now, where the system can: what compiling took is not the work's."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """Most bytes of physical memory since `forget_peak`, or since the start where it does nothing."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def repeat(work: Work, calls: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        work.run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"wall_s": wall / calls, "cpu_s": cpu / calls}


def main() -> None:
    # Whatever libraries print goes to stderr; stdout is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        serve(answer)
    except Exception as error:  # the row says why, and the other rows go on
        answer({"error": f"{type(error).__name__}: {error}"})


def serve(answer: Callable[[dict[str, Any]], None]) -> None:
    case = json.loads(sys.stdin.readline())
    cli.use_compilation_cache(case["cache"])
    work = build(case)
    first, second = repeat(work, 1), repeat(work, 1)
    building = peak_rss()
    forget_peak()
    calls = max(1, round(_REPETITION_S / max(second["wall_s"], 1e-6)))
    answer({"platform": jax.default_backend(), "device": jax.devices()[0].device_kind})
    for line in sys.stdin:
        if json.loads(line) == "run":
            answer(repeat(work, calls))
            continue
        peak = peak_rss()  # before counting, which traces everything again
        fields = {
            "peak_rss_bytes": peak,
            "start_rss_bytes": building,
            "first_s": first["wall_s"],
            "flops": None,
        }
        if work.flops:
            try:
                fields["flops"] = work.flops()
            except ValueError as error:  # nothing to hide a measured time for
                fields["flops_unknown"] = str(error)
        answer({"tokens": work.tokens, "fields": fields | work.fields})
        break


if __name__ == "__main__":
    main()
