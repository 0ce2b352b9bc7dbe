"""Suite `prepare`: speed and memory of `launch.prepare` on synthetic logs of several sizes.

    python -m launch.bench_prepare --json=prepare.json --events=10000000,100000000

A log of scattered rows (`sources/synthetic_log.py`, 100 events per user on average) is written to
Parquet files first, outside the timing; then the command is run as a user runs it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from launch import cli
from rec2pm_jax.data.dataset import read_info
from rec2pm_jax.data.sources.synthetic_log import frames
from rec2pm_jax.errors import UserError

MEAN_LENGTH = 100
ITEMS = 200_000


def rows(events: list[int], max_memory: str = "4GiB", directory: str | None = None) -> list[dict]:
    """One row per size: events, users, wall_s, events_per_s, cpu_s, peak_rss_bytes, content_hash."""
    result = []
    for size in events:
        with tempfile.TemporaryDirectory(dir=directory) as work:
            log = Path(work) / "log"
            log.mkdir()
            for i, frame in enumerate(frames(size // MEAN_LENGTH, ITEMS, MEAN_LENGTH, seed=0)):
                frame.write_parquet(log / f"{i:05d}.parquet")
            result.append(_measure(log, Path(work) / "data", max_memory))
            print(json.dumps(result[-1]), flush=True)
    return result


def _measure(log: Path, target: Path, max_memory: str) -> dict:
    command = [sys.executable, "-m", "launch.prepare", "--source=interactions", f"--input={log}"]
    command += [f"--output_dir={target}", f"--max_memory={max_memory}", "--noprogress"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:  # VmHWM is a high-water mark: only the last reading counts
        peak = max(peak, _high_water(process.pid))
        time.sleep(0.05)
    wall = time.perf_counter() - began
    if process.returncode:
        raise UserError(f"launch.prepare failed on {log} (see above).")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    info = read_info(target)
    return {
        "events": info["events"],
        "users": info["users"],
        "wall_s": round(wall, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "events_per_s": round(info["events"] / wall),
        "peak_rss_bytes": peak,
        "content_hash": info["content_hash"],
    }


def _high_water(pid: int) -> int:
    """VmHWM of a process in bytes; the command starts no others. 0 once it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def main(_) -> None:
    args = flags.FLAGS
    found = rows([int(float(e)) for e in args.events], args.max_memory, args.work_dir or None)
    if args.json:
        Path(args.json).write_text(json.dumps({"suite": "prepare", "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_list("events", ["1e7", "1e8"], "Sizes of the logs.")
    flags.DEFINE_string("max_memory", "4GiB", "As of launch.prepare.")
    flags.DEFINE_string(
        "work_dir", "", "Where logs and datasets are made; a temporary place if empty."
    )
    flags.DEFINE_string("json", "", "File of the rows.")
    cli.run(main)
