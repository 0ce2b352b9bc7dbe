"""The tables of docs/performance.md, made from the records of `launch.bench` and `launch.aot`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.compiled import report
from launch.experiments.tables import format_markdown

Table = Callable[[], list[str]]  # -> lines of markdown
Record = dict[str, Any]


def list_tables(folder: Path) -> dict[str, Table]:
    """Return the tables of the page by name.

    Args:
      folder: directory of the records, such as results/speed.
    """

    def load(*names: str) -> list[Record]:
        return [json.loads((folder / f"{name}.json").read_text()) for name in names]

    def rows(*names: str) -> list[Record]:
        return [row for record in load(*names) for row in record["rows"]]

    pods = ("tpu_pod_scaling", "tpu_pod_1m", "tpu_pod_v4_v6e", "tpu_pod_read", "tpu_pod_update")
    return {
        "machines": lambda: tabulate_machines(folder),
        "train-cpu": lambda: tabulate_steps(rows("train_sasrec4x4x64", "train_hstu16x8x64")),
        "train-other": lambda: tabulate_steps(rows("train_sasrec4x4x256", "train_full_softmax")),
        "train-gpu": lambda: tabulate_steps(
            rows("h100_many_segments", "h100_sasrec4x4x64"), clock="wall_s"
        ),
        "requests": lambda: tabulate_requests(rows("infer_sasrec", "infer_hstu")),
        "scale": lambda: tabulate_lengths(rows("scale", "scale_16000")),
        "input": lambda: tabulate_input(rows("input")),
        "topk": lambda: tabulate_search(rows("topk")),
        "prepare": lambda: tabulate_preparation(rows("prepare")),
        "data": lambda: tabulate_large_data(rows("data")[0]),
        "stream": lambda: tabulate_stream(rows("stream")[0]),
        "stream-latency": lambda: tabulate_latencies(rows("stream")[1:]),
        "tpu-chip": lambda: tabulate_compiled(
            load("tpu_v5e_pallas", "tpu_v5e_xla", "tpu_v5e_read"), attention=True
        ),
        "tpu-pod": lambda: tabulate_compiled(load(*pods)),
    }


def tabulate_machines(folder: Path) -> list[str]:
    """Return where each record was measured: file, device, cores, load and commit."""
    body = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or "rows" not in record:
            continue
        env = record["env"]
        cells = [path.name, env.get("device") or env["cpu"], str(env["threads"])]
        body.append([*cells, f"{env['load']:.1f}", env["jax"], env["commit"][:7]])
    header = ["record", "device", "cores used", "load at the start", "JAX", "commit"]
    return format_markdown(header, body)


def tabulate_steps(rows: Sequence[Record], clock: str = "cpu_s") -> list[str]:
    """Return what one training step takes.

    Args:
      rows: of suite train.
      clock: "cpu_s", or "wall_s" for accelerators.
    """
    measured = "CPU time" if clock == "cpu_s" else "wall time"
    header = ["step", "micro-batches", measured, "events/s", "peak GB", "share of matmul rate"]
    body = []
    for row in rows:
        body.append(
            [
                row["name"].replace("/step", ""),
                str(row["accumulate"]),
                _format_seconds(row[clock]),
                f"{row['tokens_per_s']:,.0f}",
                f"{row['peak_rss_bytes'] / 1e9:.2f}",
                f"{100 * row['mfu']:.0f} %",
            ]
        )
    return format_markdown(header, body)


def tabulate_requests(rows: Sequence[Record]) -> list[str]:
    """Return what one request, update or step takes in CPU time."""
    names = {
        "full": "request over the whole window",
        "read": "request",
        "read_incremental": "request after one more event",
        "update": "update with one segment",
        "step": "training step",
    }
    body = []
    for row in rows:
        method = row["name"].split("/")[1]
        body.append(
            [
                f"{row['backbone']} {row['layers']} x {row['heads']}, {method}",
                names[row["mode"]],
                f"{row['length']:,}",
                _format_seconds(row["cpu_s"]),
                f"{row['state_bytes_per_user'] or 0:,}",
            ]
        )
    header = ["model", "what", "events of the user", "CPU time", "state, bytes"]
    return format_markdown(header, body)


def tabulate_lengths(rows: Sequence[Record]) -> list[str]:
    """Return CPU time by length of the history: lengths down, kinds of step across."""
    kinds = {
        "full, step": ("full", "none", 0),
        "rec2pm_o, step": ("rec2pm", "overwrite", 0),
        "rec2pm_o, window of 2, step": ("rec2pm", "overwrite", 2),
        "memory in one pass": ("rec2pm", "one_time", 0),
        "memory in one pass, window of 2": ("rec2pm", "one_time", 2),
    }
    cells: dict[int, dict[tuple[str, str, int], str]] = {}
    for row in rows:
        key = (row["method"], row["memory"], row.get("reference_window") or 0)
        cells.setdefault(row["length"], {})[key] = _format_seconds(row["cpu_s"])
    body = [
        [f"{length:,}", *(found.get(key, "-") for key in kinds.values())]
        for length, found in sorted(cells.items())
    ]
    return format_markdown(["events", *kinds], body)


def tabulate_input(rows: Sequence[Record]) -> list[str]:
    """Return how many events per second the input pipeline delivers and a step consumes."""
    body = [[row["name"], f"{row['tokens_per_s']:,.0f}"] for row in rows]
    return format_markdown(["what", "events/s"], body)


def tabulate_search(rows: Sequence[Record]) -> list[str]:
    """Return the time of exact searches over a large catalogue."""
    body = [
        [
            {"blockwise": "rec2pm_jax, nn.topk", "faiss_flat_ip": "faiss, IndexFlatIP"}[
                row["method"]
            ],
            str(row["batch"]),
            f"{row['items']:,}",
            _format_seconds(row["cpu_s"]),
        ]
        for row in rows
    ]
    return format_markdown(["search", "queries", "items", "CPU time"], body)


def tabulate_preparation(rows: Sequence[Record]) -> list[str]:
    """Return time and memory of `launch.prepare`."""
    body = [
        [
            f"{row['events']:,}",
            f"{row['users']:,}",
            f"{row['wall_s']:.0f} s",
            f"{row['events_per_s']:,}",
            f"{row['peak_rss_bytes'] / 1e9:.2f}",
        ]
        for row in rows
    ]
    return format_markdown(["events", "users", "wall time", "events/s", "peak GB"], body)


def tabulate_large_data(row: Record) -> list[str]:
    """Return what data that do not fit in memory cost."""

    def gigabytes(name: str) -> str:
        return f"{row[name] / 1e9:.2f} GB"

    body = [
        ["events, items, users", ", ".join(f"{row[x]:,}" for x in ("events", "items", "users"))],
        ["disk", gigabytes("disk_bytes")],
        ["opening", f"{_format_seconds(row['open_s'])}, {gigabytes('open_rss_bytes')}"],
        ["one of the first 4,000 look-ups of a raw id", _format_seconds(row["look_up_us"] / 1e6)],
        ["first training batch", _format_seconds(row["first_batch_s"])],
        ["training windows per CPU second", f"{row['windows_per_cpu_s']:,}"],
        ["windows per second against those of a step", f"{row['windows_ratio']:.0f} x"],
        ["memory of a process that feeds", gigabytes("feed_rss_bytes")],
        ["counting the training events of all items", _format_seconds(row["count_s"])],
        ["start to the first step, two processes", _format_seconds(row["first_step_s"])],
        ["the same after SIGKILL of both", _format_seconds(row["resumed_step_s"])],
        ["peak memory of each process that trains", gigabytes("train_peak_rss_bytes")],
    ]
    return format_markdown(["quantity", "value"], body)


def tabulate_stream(row: Record) -> list[str]:
    """Return what a stream does at full speed, and its use of disk."""
    body = [
        ["users", f"{row['users']:,}"],
        ["events/s, with updates and commits", f"{row['events_per_s']:,}"],
        ["lines/s, with a request in every 150", f"{row['capacity_lines_per_s']:,}"],
        ["disk per user, bytes", f"{row['disk_bytes_per_user']:,.0f}"],
        ["opening the store", _format_seconds(row["open_s"])],
    ]
    return format_markdown(["quantity", "value"], body)


def tabulate_latencies(rows: Sequence[Record]) -> list[str]:
    """Return the latency of a stream's requests: shares of its capacity down, percentiles across."""
    names = ("p50", "p95", "p99")
    body = []
    for row in rows:
        cells = [f"{row['share']:.0%}", f"{row['runs'][0]['lines_per_s']:,}"]
        for name in names:
            found = sorted(run["latency_ms"][name] for run in row["runs"])
            cells.append(f"{row['latency_ms'][name]:.1f} ms ({found[0]:.1f}..{found[-1]:.1f})")
        body.append(cells)
    return format_markdown(["of the capacity", "lines/s", *names], body)


def tabulate_compiled(records: Sequence[Record], attention: bool = False) -> list[str]:
    """Return what the TPU compiler reports of a step, per chip.

    Args:
      records: of `launch.aot`; a list inside stands for several topologies.
      attention: name the attention implementation of each row.
    """
    header = ["step", "topology", "items", *report.COLUMNS]
    body = []
    for entry in records:
        for record in entry if isinstance(entry, list) else [entry]:
            name = record["step"]
            if attention:
                name += f", attention {record['config']['compute']['attention']}"
            cells = report.format_columns(record)
            body.append([name, record["topology"], f"{record['items']:,}", *cells])
    return format_markdown(header, body)


def _format_seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"
