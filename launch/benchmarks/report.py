"""A benchmark record as text a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rec2pm_jax.evaluate.report import format_table


def setting_line(record: Mapping[str, Any]) -> str:
    env = record["env"]
    peaks = ", ".join(f"{d} {p / 1e9:.1f} GFLOP/s" for d, p in env["matmul_flops_per_s"].items())
    return (
        f"{env['cpu']}, {env['threads']} of {env['cores']} cores | jax {env['jax']} on "
        f"{env.get('device') or env['platform']} | allocator {env['allocator']} | "
        f"medians of {env['repeats']} | load {env['load']} | matmul {peaks} "
        f"({env['mfu_clock'].removesuffix('_s')} time)"
    )


def table(record: Mapping[str, Any]) -> str:
    """One line per row; rows that could not be measured say why."""
    header = ["row", "wall", "cpu", "peak MB", "tokens/s", "GFLOP", "mfu %", "state B", "first s"]
    body = [
        [
            row["name"],
            _seconds(row["wall_s"]),
            _seconds(row["cpu_s"]),
            _number(row["peak_rss_bytes"], 1e-6, 0),
            _number(row["tokens_per_s"], 1, 0),
            _number(row["flops"], 1e-9, 2),
            _number(row["mfu"], 100, 1),
            _number(row["state_bytes_per_user"], 1, 0),
            _number(row.get("first_s"), 1, 1),
        ]
        for row in record["rows"]
    ]
    failed = [f"{row['name']}: {row['error']}" for row in record["rows"] if "error" in row]
    return "\n".join([format_table(header, body), *failed])


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value:,.{digits}f}"
