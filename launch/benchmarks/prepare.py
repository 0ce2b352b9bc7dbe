"""--suite=prepare: speed and memory of `launch.prepare` on synthetic logs of several sizes.

A log of scattered rows (`data/sources/synthetic_log.py`, 100 events per user on average) is first
written to Parquet files, outside the timing. Then the command runs as a user runs it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rec2pm_jax.data.info import read_info
from rec2pm_jax.data.sources.synthetic_log import frames
from rec2pm_jax.errors import UserError

MEAN_LENGTH = 100
ITEMS = 200_000
EVENTS = (10_000_000, 100_000_000)
SMOKE_EVENTS = (5_000,)
MAX_MEMORY = "4GiB"


def measure_rows(smoke: bool) -> Iterator[dict[str, Any]]:
    """Yield one row per size, see `_measure`; smoke: one tiny size."""
    for size in SMOKE_EVENTS if smoke else EVENTS:
        with tempfile.TemporaryDirectory() as work:
            log = Path(work) / "log"
            log.mkdir()
            for i, frame in enumerate(frames(size // MEAN_LENGTH, ITEMS, MEAN_LENGTH, seed=0)):
                frame.write_parquet(log / f"{i:05d}.parquet")
            yield _measure(log, Path(work) / "data")


def _measure(log: Path, target: Path) -> dict[str, Any]:
    """Prepare a log and return its size, time, rate, peak memory and content hash."""
    command = [sys.executable, "-m", "launch.prepare", "--source=interactions", f"--input={log}"]
    command += [f"--output_dir={target}", f"--max_memory={MAX_MEMORY}", "--noprogress"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:  # VmHWM only grows
        peak = max(peak, _read_peak_rss(process.pid))
        time.sleep(0.05)
    wall = time.perf_counter() - began
    if process.returncode:
        raise UserError(f"launch.prepare failed on {log} (see above).")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    info = read_info(target)
    return {
        "name": f"prepare/{info['events']}",
        "events": info["events"],
        "users": info["users"],
        "wall_s": round(wall, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "events_per_s": round(info["events"] / wall),
        "peak_rss_bytes": peak,
        "content_hash": info["content_hash"],
    }


def _read_peak_rss(pid: int) -> int:
    """Return VmHWM of a process in bytes, 0 if it has ended; the command starts no others."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
