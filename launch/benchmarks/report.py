"""A benchmark record as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rec2pm_jax.evaluation.report import format_table


def format_setting(record: Mapping[str, Any]) -> str:
    """Return one line with the machine and how rows were measured."""
    env = record["env"]
    peaks = ", ".join(f"{d} {p / 1e9:.1f} GFLOP/s" for d, p in env["matmul_flops_per_s"].items())
    return (
        f"{env['cpu']}, {env['threads']} of {env['cores']} cores | jax {env['jax']} on "
        f"{env.get('device') or env['platform']} | allocator {env['allocator']} | "
        f"medians of {env['repeats']} | load {env['load']} | matmul {peaks} "
        f"({env['mfu_clock'].removesuffix('_s')} time)"
    )


def format_record(record: Mapping[str, Any]) -> str:
    """Return one line per row, and the reasons of rows that could not be measured."""
    header = ["row", "wall", "cpu", "peak MB", "tokens/s", "GFLOP", "mfu %", "state B", "first s"]
    body = [
        [
            row["name"],
            _format_seconds(row["wall_s"]),
            _format_seconds(row["cpu_s"]),
            _format_number(row["peak_rss_bytes"], 1e-6, 0),
            _format_number(row["tokens_per_s"], 1, 0),
            _format_number(row["flops"], 1e-9, 2),
            _format_number(row["mfu"], 100, 1),
            _format_number(row["state_bytes_per_user"], 1, 0),
            _format_number(row.get("first_s"), 1, 1),
        ]
        for row in record["rows"]
    ]
    failed = [f"{row['name']}: {row['error']}" for row in record["rows"] if "error" in row]
    return "\n".join([format_table(header, body), *failed])


def _format_seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _format_number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value:,.{digits}f}"
