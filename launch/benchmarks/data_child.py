"""One measurement of `--suite=data` in a fresh process: prints a line of JSON.

The arguments are the name of a measure (open, feed or count) and the directory of the dataset.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

BATCH, WINDOW = 8, (8, 4)  # rows of a step; S and K
_LOOK_UPS, _BATCHES = 2_000, 400


def read_status(pid: int | str = "self") -> dict[str, int]:
    """Return the memory of a process in bytes: now, at most, and what no file backs; empty if ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    names = {"VmRSS:": "rss_bytes", "VmHWM:": "peak_rss_bytes", "RssAnon:": "anonymous_bytes"}
    found = (line.split() for line in lines)
    return {names[row[0]]: int(row[1]) * 1024 for row in found if row and row[0] in names}


def measure_open(path: str) -> dict[str, float]:
    """Return what opening takes, and then looking raw ids up for the first time."""
    from rec2pm_jax.data.dataset import open_dataset

    before, began = read_status(), time.perf_counter()
    dataset = open_dataset(path)
    opened, after = time.perf_counter() - began, read_status()
    began = time.perf_counter()
    for number in range(_LOOK_UPS):
        dataset.user_index(f"u{1_000_000_000 + number * 7919 % dataset.num_users}")
        dataset.items.id_of(f"i{1_000_000_001 + number * 7919 % dataset.num_items}")
    looked_up, last = time.perf_counter() - began, read_status()
    return {
        "import_rss_bytes": before["rss_bytes"],
        "open_s": round(opened, 3),
        "open_rss_bytes": after["peak_rss_bytes"],
        "look_up_us": round(1e6 * looked_up / (2 * _LOOK_UPS), 1),
        "look_up_rss_bytes": last["peak_rss_bytes"],
    }


def measure_feed(path: str) -> dict[str, float]:
    """Return how fast training batches are made, and the memory that it takes."""
    from rec2pm_jax.config import DataConfig
    from rec2pm_jax.data.dataset import open_dataset
    from rec2pm_jax.data.pipeline import train_iterator

    before = read_status()
    dataset = open_dataset(path)
    began = time.perf_counter()
    batches = train_iterator(dataset, DataConfig(*WINDOW), BATCH, seed=0)
    next(batches)
    first, began = time.perf_counter() - began, time.perf_counter()
    cpu = time.process_time()
    for _ in range(_BATCHES):
        next(batches)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    after = read_status()
    return {
        "first_batch_s": round(first, 3),
        "windows_per_s": round(BATCH * _BATCHES / wall),
        "windows_per_cpu_s": round(BATCH * _BATCHES / cpu),
        "feed_rss_bytes": after["peak_rss_bytes"] - before["peak_rss_bytes"],
        "feed_anonymous_bytes": after["anonymous_bytes"] - before["anonymous_bytes"],
    }


def measure_count(path: str) -> dict[str, float]:
    """Return how long the training events of all items take to count, from all records."""
    from rec2pm_jax.data.dataset import open_dataset
    from rec2pm_jax.data.splits import LAST_10, count_training_events

    dataset, began = open_dataset(path), time.perf_counter()
    events = int(count_training_events(dataset, LAST_10).sum())
    wall = time.perf_counter() - began
    return {
        "count_s": round(wall, 1),
        "counted_events": events,
        "count_rss_bytes": read_status()["peak_rss_bytes"],
    }


MEASURES: dict[str, Callable[[str], dict[str, float]]] = {
    "open": measure_open,
    "feed": measure_feed,
    "count": measure_count,
}

if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[1]](sys.argv[2])))
