"""Evaluation records and memory diagnostics as text a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.evaluate.metrics import METRICS

_SUFFIX = {"overwrite": "_o", "append": "_a"}


def setting_line(record: Mapping[str, Any]) -> str:
    """One line that says under which conditions the numbers of a record were measured."""
    state = "none"
    if record["state_bytes_per_user"] is not None:
        state = f"{record['state_bytes_per_user']} B"
        if record["state_used_bytes"] is not None:
            state += f" capacity, {record['state_used_bytes']:.0f} B used on average"
        state += f" + {record['state_bookkeeping_bytes']} B bookkeeping"
    seen = "masked" if record["seen_masked"] else "not masked"
    split = record["split"]
    if not split_rule(record["protocol"]).validation:
        split += " (steps are chosen on it too)"
    return (
        f"setting: dataset {record['dataset']} | split {split} | protocol "
        f"{record['protocol']} | {record['users']} users, {record['targets']} targets, "
        f"{record['skipped_users']} users skipped (no targets) | memory {record['memory']} | full "
        f"catalogue, ties pessimistic, seen items {seen} | state per user {state} | target's "
        f"time {'was an input' if target_time_is_input(record['config']) else 'not used'}"
    )


def target_time_is_input(config: Mapping[str, Any]) -> bool:
    """Whether the model saw when the target happens (query times of a time bias)."""
    return config.get("model", {}).get("relative_bias") == "position_time"


def display_name(record: Mapping[str, Any]) -> str:
    """Name of a record's method in tables, e.g. rec2pm_o, or personal_frequency (window 50)."""
    one_time = record["memory"] == "one_time"
    name = record["method"] + (" (one-time)" if one_time else _SUFFIX.get(record["memory"], ""))
    if record.get("config", {}).get("method", {}).get("sketch"):
        name += " + sketch"
    if record["method"] == "personal_frequency":
        window, half_life = record["config"]["window"], record["config"]["half_life"]
        name += f" (window {window})" if window else " (whole history)"
        name += f" half-life {half_life:g}" if half_life else ""
    return name


def metrics_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Metrics in percent, one row per record, ndcg@10 with its 95 % bootstrap interval."""
    header = ["method", *METRICS, "ndcg@10 95 %", "swapped ndcg@10"]
    body = []
    for record in records:
        low, high = record["intervals"]["ndcg@10"]
        swap = record["swap"]
        body.append(
            [
                display_name(record),
                *(f"{100 * record['metrics'][name]:.2f}" for name in METRICS),
                f"{100 * low:.2f}-{100 * high:.2f}",
                "-" if swap is None else f"{100 * swap['ndcg@10']:.2f}",
            ]
        )
    return format_table(header, body)


def diagnostics_table(diagnostics: Mapping[str, Any]) -> str:
    """The tables of `diagnostics.memory_diagnostics`."""
    rows = [diagnostics["ndcg@10"], *diagnostics["by_raw_events"]]
    labels = ["all", *(f"{r['from']}-{r['to']}" for r in diagnostics["by_raw_events"])]
    kinds = ("own", "swapped", "zero", "mean")
    used = format_table(
        ["raw events read", "targets", *(f"{kind} memory" for kind in kinds)],
        [
            [label, str(row["targets"]), *(_percent(row[kind]) for kind in kinds)]
            for label, row in zip(labels, rows, strict=True)
        ],
    )
    figures = format_table(
        ["memory", "value"],
        [
            [name.replace("_", " "), "-" if value is None else f"{value:.4g}"]
            for name, value in diagnostics["memory"].items()
        ],
    )
    drift = format_table(
        ["updates", "users", "drift from one-time", "as share of variance"],
        [
            [
                str(row["updates"]),
                str(row["users"]),
                f"{row['squared_distance']:.4g}",
                "-" if row["relative"] is None else f"{row['relative']:.3f}",
            ]
            for row in diagnostics["drift"]
        ],
    )
    return f"NDCG@10, %, targets with memory\n{used}\n\n{figures}\n\n{drift}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def format_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Columns padded to equal width: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *body):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
