"""Format evaluation records and memory diagnostics as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.evaluation.metrics import METRICS

_SUFFIX = {"overwrite": "_o", "append": "_a", "one_time": " (one-time)"}


def setting_line(record: Mapping[str, Any]) -> str:
    """Return one line that names the conditions under which a record was measured."""
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
        f"time {'was an input' if target_time_is_input(record) else 'not used'}"
    )


def target_time_is_input(record: Mapping[str, Any]) -> bool:
    """Return whether the method was given the time of the target.

    Args:
      record: of an evaluation. Before version 0.2 records had no `request_time_known`, and a model
        with a time bias was given the time.
    """
    with_bias = record["config"].get("model", {}).get("relative_bias") == "position_time"
    return record.get("request_time_known", with_bias)


def display_name(record: Mapping[str, Any]) -> str:
    """Return the name of a record's method in tables.

    >>> display_name({"method": "rec2pm", "memory": "overwrite"})
    'rec2pm_o'
    >>> setting = {"window": 50, "half_life": None}
    >>> display_name({"method": "personal_frequency", "memory": "none", "config": setting})
    'personal_frequency (window 50)'
    """
    name = record["method"] + _SUFFIX.get(record["memory"], "")
    config = record.get("config", {})
    if config.get("method", {}).get("sketch"):
        name += " + sketch"
    if record["method"] == "personal_frequency":
        window, half_life = config["window"], config["half_life"]
        name += f" (window {window})" if window else " (whole history)"
        name += f" half-life {half_life:g}" if half_life else ""
    reads_times = config.get("model", {}).get("use_times", False)
    if record.get("request_time_known", reads_times) != bool(reads_times):
        name += ", request time " + ("unknown" if reads_times else "known")
    return name


def record_text(record: Mapping[str, Any]) -> str:
    """Return the setting and all tables of an evaluation record of `launch.evaluate`."""
    parts = [f"{setting_line(record)}\n{metrics_table([record])}"]
    parts.append(frequency_table(record["by_training_events"]))
    if "diagnostics" in record:
        parts.append(diagnostics_table(record["diagnostics"]))
    return "\n\n".join(parts)


def metrics_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of metrics in percent, one row per record, with the 95 % interval of ndcg@10."""
    names = [*METRICS, *(name for name in records[0]["metrics"] if name not in METRICS)]
    header = ["method", *names, "ndcg@10 95 %", "swapped ndcg@10"]
    body = []
    for record in records:
        low, high = record["intervals"]["ndcg@10"]
        swap = record["swap"]
        body.append(
            [
                display_name(record),
                *(f"{100 * record['metrics'][name]:.2f}" for name in names),
                f"{100 * low:.2f}-{100 * high:.2f}",
                "-" if swap is None else f"{100 * swap['ndcg@10']:.2f}",
            ]
        )
    return format_table(header, body)


def diagnostics_table(diagnostics: Mapping[str, Any]) -> str:
    """Return the tables of what `diagnostics.memory_diagnostics` found."""
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


def frequency_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what `item_frequency.by_training_events` found as a table, in percent.

    >>> row = {"training_events": "0", "items": 3, "targets": 2, "users": 1, "ndcg@10": 0.5}
    >>> print(frequency_table([row | {"hr@10": None}]))
    training events of the item  items  targets  ndcg@10  hr@10
    ---------------------------  -----  -------  -------  -----
    0                                3        2    50.00      -
    """
    return format_table(
        ["training events of the item", "items", "targets", "ndcg@10", "hr@10"],
        [
            [
                row["training_events"],
                *(str(row[name]) for name in ("items", "targets")),
                *("-" if row[m] is None else f"{100 * row[m]:.2f}" for m in ("ndcg@10", "hr@10")),
            ]
            for row in rows
        ],
    )


def format_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table with columns of equal width: the first aligned left, the others right.

    >>> print(format_table(["method", "hr@10"], [["full", "18.30"]]))
    method  hr@10
    ------  -----
    full    18.30
    """
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *body):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
