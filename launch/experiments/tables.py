"""Markdown tables of a suite, made from rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.experiments.rows import Row
from rec2pm_jax.evaluation.bootstrap import paired_bootstrap

# Events before the last target.
BINS = ((0, 200), (200, 500), (500, 1000), (1000, 5000), (5000, 1 << 30))

COLUMNS = ("seeds", "state, bytes", "HR@10", "HR@50", "MRR", "NDCG@10")


def tabulate_comparison(
    rows: Sequence[Row],
    baselines: Sequence[str] = (),
    long: bool = False,
    columns: Sequence[str] = COLUMNS,
    costs: Sequence[str] = ("memory swapped", "training, min"),
) -> list[str]:
    """Return a table of metrics and of ratios to some rows, best first.

    Args:
      rows: of one dataset and backbone.
      baselines: variants that every row is paired with, if they are there.
      long: only users with long histories; then the table has NDCG@10 and ratios alone.
      columns: those before the ratios: of `COLUMNS`, or metrics of the records in capitals.
      costs: those behind the ratios.
    """
    by_name = {row.variant: row for row in rows}
    paired = [by_name[name] for name in baselines if name in by_name]
    if long:
        columns, costs = ("NDCG@10",), ()
    header = ["method", *columns, *(f"/ {base.label}" for base in paired), *costs]
    body = []
    for row in sorted(rows, key=lambda row: row.user_values(long).mean(), reverse=True):
        cells = [row.label, *(format_cell(name, row, long) for name in columns)]
        cells += [format_ratio(row, base, long) for base in paired]
        body.append(cells + [format_cell(name, row, long) for name in costs])
    body[0] = [f"**{cell}**" for cell in body[0]]
    return format_markdown(header, body)


def format_cell(column: str, row: Row, long: bool = False) -> str:
    """Return the cell of a row in one of the columns of `tabulate_comparison`."""
    record = row.records[0]
    if column == "seeds":
        return str(len(row.records)) if row.trained else "-"
    if column == "state, bytes":
        return f"{record['state_bytes_per_user']:,}" if record["state_bytes_per_user"] else "-"
    if column == "NDCG@10":
        return _format_ndcg(row, long)
    if column == "memory swapped":
        return format_swap(row, "ndcg@10")
    if column == "training, min":
        seconds = [r["train_wall_s"] for r in row.records if r.get("train_wall_s")]
        return f"{np.mean(seconds) / 60:.0f}" if seconds else "-"
    return f"{100 * row.mean(column.lower()):.2f}"


def format_swap(row: Row, part: str) -> str:
    """Return NDCG@10 with a part of another user's state, "-" if the method has no such part.

    Args:
      row: of a table.
      part: "memory", "exact", or "ndcg@10" for the whole state.
    """
    swaps = [r["swap"][part] for r in row.records if r["swap"] and part in r["swap"]]
    return f"{100 * np.mean(swaps):.2f}" if swaps else "-"


def _format_ndcg(row: Row, long: bool) -> str:
    """Return the mean over users and seeds; with several seeds their standard deviation, too."""
    values = 100 * row.user_values(long)
    if len(row.records) > 1:
        users = row.select_users(long)
        spread = 100 * row.ndcg[:, users].mean(axis=1).std(ddof=1)
        return f"{values.mean():.2f} ± {spread:.2f}"
    return f"{values.mean():.2f}"


def format_ratio(row: Row, base: Row, long: bool = False) -> str:
    """Return the ratio of two rows' NDCG@10 with its paired interval, "1" for a row and itself."""
    if row is base:
        return "1"
    ratio = paired_bootstrap(row.user_values(long), base.user_values(long)).ratio
    return f"{ratio.estimate:.3f} ({ratio.low:.3f}..{ratio.high:.3f})"


def tabulate_search(rows: Sequence[Row]) -> list[str]:
    """Return a table of families down and settings across, the best of each family in bold."""
    cells = {tuple(row.variant.split("/")[1:]): row.mean() for row in rows}
    settings = sorted({setting for _, setting in cells})
    body = []
    for method in dict.fromkeys(method for method, _ in cells):
        values = {s: cells[method, s] for s in settings if (method, s) in cells}
        best = max(values, key=lambda setting: values[setting])
        shown = {
            s: f"**{100 * v:.2f}**" if s == best else f"{100 * v:.2f}" for s, v in values.items()
        }
        body.append([method, *(shown.get(setting, "-") for setting in settings)])
    return format_markdown(["method", *settings], body)


def tabulate_noise(rows: Sequence[Row]) -> list[str]:
    """Return NDCG@10 and its share of the clean value, by method and by noise."""
    body, header = [], ["method", "clean"]
    for method, levels in group_noise_levels(rows).items():
        (_, clean), *noisy = levels.items()
        header = ["method", "clean", *(f"{kind} {share:.0%}" for (kind, share), _ in noisy)]
        cells = (f"{100 * row.mean():.2f} ({row.mean() / clean.mean():.3f})" for _, row in noisy)
        body.append([method, f"{100 * clean.mean():.2f}", *cells])
    return format_markdown(header, body)


def group_noise_levels(rows: Sequence[Row]) -> dict[str, dict[tuple[str, float], Row]]:
    """Return method -> (kind, share) -> row, the clean one first."""
    found: dict[str, dict[tuple[str, float], Row]] = {}
    for row in rows:
        level = row.records[0]["noise"]
        key = (level["kind"], level["fraction"])
        found.setdefault(row.variant.split("/")[0], {})[key] = row
    return {
        method: {level: levels[level] for level in sorted(levels, key=lambda x: (x[1] > 0, x))}
        for method, levels in found.items()
    }


def tabulate_lengths(rows: Sequence[Row]) -> list[str]:
    """Return NDCG@10 of users by length of the history; lengths of no user are left out."""
    lengths = rows[0].lengths
    groups = {
        f"{low}-{high}" if high < 1 << 30 else f">= {low}": (lengths >= low) & (lengths < high)
        for low, high in BINS
    }
    groups = {name: group for name, group in groups.items() if group.any()}
    header = [f"{name} ({group.sum()} users)" for name, group in groups.items()]
    body = []
    for row in rows:
        values = row.user_values()
        body.append([row.label, *(f"{100 * values[g].mean():.2f}" for g in groups.values())])
    return format_markdown(["method", *header], body)


def tabulate_drift(rows: Sequence[Row]) -> list[str]:
    """Return the drift of memories: methods down, number of updates across.

    Empty if no method has a one-time memory to drift from.
    """
    found = {row.label: row.records[0]["drift"] for row in rows if row.records[0].get("drift")}
    updates = sorted({step["updates"] for steps in found.values() for step in steps})
    body = []
    for label, steps in found.items():
        cells = {
            step["updates"]: f"{step['relative']:.3f} ({step['users']})"
            for step in steps
            if step["relative"] is not None  # one user has no variance
        }
        body.append([label, *(cells.get(count, "-") for count in updates)])
    return format_markdown(["method", *map(str, updates)], body) if body else []


def describe_anatomy(rows: Sequence[Row]) -> list[str]:
    """Return attention on the memory, agreement of neighbours, and portraits of some users."""
    lines = []
    for row in rows:
        found = row.records[0]["anatomy"]
        lines += [f"### {row.label}", "", "Attention on the memory, %:", ""]
        lines += _tabulate_attention(found["attention"])
        near = found["neighbours"]
        lines += [
            "",
            f"Of the ten nearest users by memory {100 * near['same']:.1f} % share a user's dominant "
            f"category; of random users {100 * near['chance']:.1f} %.",
        ]
        for user in found["users"]:
            lines += [
                "",
                f"A user with {user['archived_events']} archived events, most often "
                f"{', '.join(user['bought_most'])}:",
                "",
            ]
            body = [[str(slot), ", ".join(items)] for slot, items in enumerate(user["slots"])]
            lines += format_markdown(["slot", "nearest items"], body)
        lines.append("")
    return lines


def _tabulate_attention(attention: dict[str, Any]) -> list[str]:
    body = []
    layers = zip(attention["update"], attention["read"], strict=True)
    for layer, (queries, reader) in enumerate(layers, 1):
        body.append([str(layer), *(f"{100 * share[0]:.1f}" for share in (*queries, reader))])
    names = [f"query {slot}" for slot in range(len(attention["update"][0]))]
    return format_markdown(["layer", *names, "last raw event"], body)


def format_markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first column is text and whose others are numbers."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *body)]
