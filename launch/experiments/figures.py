"""Figures of suites and comparisons, one line of panels per dataset and backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.experiments.rows import Row, Tables, choose_for_main
from launch.experiments.tables import group_noise_levels
from rec2pm_jax.evaluation.bootstrap import bootstrap
from rec2pm_jax.evaluation.denoise import KINDS
from rec2pm_jax.evaluation.report import display_name
from rec2pm_jax.plotting import pyplot, save
from rec2pm_jax.runs import Result

Axes = Any  # of matplotlib, which is imported only when a figure is drawn

COLOURS = {
    "rec2pm": "#c0392b",
    "tok_serial": "#2980b9",
    "kv_mask": "#27ae60",
    "full": "#34495e",
    "recent": "#7f8c8d",
    "linear_recurrence": "#8e44ad",
}
_OTHERS = "#d5d8dc"


def draw_comparison(results: Sequence[Result], path: str | Path) -> None:
    """Draw NDCG@10 of every row of `launch.compare`, and of models by length of the history.

    Raises:
      UserError: matplotlib is not installed.
    """
    figure, (bars, curves) = pyplot().subplots(1, 2, figsize=(11, 4.2))
    records = [row.record for row in results]
    values = [100 * r["metrics"]["ndcg@10"] for r in records]
    intervals = [100 * np.array(r["intervals"]["ndcg@10"]) for r in records]
    _draw_bars(bars, records, [display_name(r) for r in records], np.c_[values, intervals])
    for row in results:
        if row.record["method"] in COLOURS:
            _draw_curve(curves, row)
    curves.set_xscale("log")
    curves.set_xlabel("events in the user's history")
    curves.set_ylabel("NDCG@10, %")
    curves.legend(frameon=False)
    _remove_frame(curves)
    last = records[-1]
    figure.suptitle(
        f"{last['dataset']}, {last['split']} split, {last['protocol']}, {last['users']} users",
        fontsize=11,
    )
    figure.tight_layout()
    save(figure, path)


def draw_main(tables: Tables, path: str | Path) -> None:
    """Draw accuracy and state where the time of the request is known, and accuracy by history length.

    Raises:
      UserError: matplotlib is not installed.
    """
    tables = {key: choose_for_main(rows) for key, rows in tables.items()}
    heights = [1.2 + 0.26 * len(rows) for rows in tables.values()]
    figure, axes = pyplot().subplots(
        *(len(tables), 2),
        figsize=(12, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (bars, curves), ((dataset, backbone), rows) in zip(axes, tables.items(), strict=True):
        intervals = np.array([bootstrap(100 * row.user_values()) for row in rows])
        _draw_bars(bars, [r.records[0] for r in rows], [row.label for row in rows], intervals)
        bars.set_title(f"{dataset}, {backbone}", fontsize=10, loc="left")
        _draw_curves(curves, rows)
    save(figure, path)


def draw_denoise(tables: Tables, path: str | Path) -> None:
    """Draw which share of the clean NDCG@10 is left under noise; one panel per kind of noise.

    Raises:
      UserError: matplotlib is not installed.
    """
    figure, axes = pyplot().subplots(
        len(tables),
        len(KINDS),
        figsize=(11, 4.2 * len(tables)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for line, ((dataset, backbone), rows) in zip(axes, tables.items(), strict=True):
        for axis, kind in zip(line, KINDS, strict=True):
            for method, levels in group_noise_levels(rows).items():
                clean = next(iter(levels.values()))
                shares = [0.0, *(share for (k, share) in levels if k == kind and share)]
                left = [1.0, *(levels[kind, s].mean() / clean.mean() for s in shares[1:])]
                style = {"marker": "o", "ms": 4, "color": _choose_colour(clean)}
                axis.plot(shares, left, _choose_line(method), label=method, **style)
            axis.set_title(f"{dataset}, {backbone}: {kind} items", fontsize=10, loc="left")
            axis.set_xlabel("share of archived events replaced")
            axis.set_ylabel("NDCG@10 relative to clean")
            axis.legend(frameon=False, fontsize=8, ncols=2)
            _remove_frame(axis)
    save(figure, path)


def draw_anatomy(tables: Tables, path: str | Path) -> None:
    """Draw attention of the queries and the plane of users' memories, one line per method.

    Raises:
      UserError: matplotlib is not installed.
    """
    rows = [row for table in tables.values() for row in table]
    figure, axes = pyplot().subplots(
        len(rows), 2, figsize=(11, 4.4 * len(rows)), squeeze=False, layout="constrained"
    )
    for (left, right), row in zip(axes, rows, strict=True):
        _draw_attention(left, row)
        _draw_plane(right, row)
    save(figure, path)


def _draw_attention(axis: Axes, row: Row) -> None:
    """Draw attention of the one-pass queries by segment.

    Methods without a one-pass memory show the attention of the update on the memory, by layer.
    """
    attention = row.records[0]["anatomy"]["attention"]
    if attention["one_pass"] is None:
        lines = np.array(attention["update"])[..., 0].T
        axis.set_xticks(range(1, lines.shape[1] + 1))
        axis.set_xlabel("layer")
        axis.set_ylabel("attention of the query on the memory, update")
    else:
        lines = attention["one_pass"][0]
        axis.set_xlabel("segments ago")
        axis.set_ylabel("attention of the one-pass query, first layer")
    for slot, shares in enumerate(lines):
        axis.plot(range(1, len(shares) + 1), shares, marker="o", ms=4, label=f"slot {slot}")
    axis.set_ylim(bottom=0)  # so that differences look as large as they are
    axis.set_title(row.label, fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=8)
    _remove_frame(axis)


def _draw_plane(axis: Axes, row: Row) -> None:
    """Draw users by the first two principal components of their memories."""
    found = row.records[0]["anatomy"]
    plane, labels = np.array(found["plane"]), np.array(found["labels"])
    for name in sorted(set(labels)):
        axis.scatter(*plane[labels == name].T, s=6, alpha=0.7, label=name.title())
    axis.set_title(
        f"{row.label}: users by memory, coloured by dominant category", fontsize=10, loc="left"
    )
    axis.set_xlabel("first principal component")
    axis.set_ylabel("second")
    axis.legend(
        frameon=False, fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    _remove_frame(axis)


def _draw_bars(
    axis: Axes, records: Sequence[dict[str, Any]], names: Sequence[str], intervals: np.ndarray
) -> None:
    """Draw one bar per record; intervals: float [records, 3], mean, low and high in %."""
    mean, low, high = intervals.T
    errors = np.stack([mean - low, high - mean])
    fill = [COLOURS.get(record["method"], _OTHERS) for record in records]
    axis.barh(names, mean, xerr=errors, color=fill, error_kw={"lw": 1, "capsize": 2})
    for i, record in enumerate(records):
        state = record["state_bytes_per_user"]
        text = f" {mean[i]:.2f}" + (f"   {state:,} B/user" if state else "")
        axis.text(high[i], i, text, va="center", fontsize=8)
    axis.set_xlim(0, high.max() * 1.35)
    axis.set_xlabel("NDCG@10, %, and its 95 % interval")
    axis.invert_yaxis()
    _remove_frame(axis)


def _draw_curve(axis: Axes, row: Result) -> None:
    """Draw mean NDCG@10 of users by history length, in eight groups of equal size."""
    evaluation = row.evaluation
    users, last = np.unique(evaluation.user[::-1], return_index=True)
    lengths = evaluation.position[::-1][last]
    order = np.argsort(lengths, kind="stable")
    groups = np.array_split(order, min(8, len(users)))
    x = [np.median(lengths[g]) for g in groups]
    y = [100 * evaluation.user_ndcg[g].mean() for g in groups]
    colour = COLOURS[row.record["method"]]
    axis.plot(x, y, marker="o", ms=4, color=colour, label=display_name(row.record))


def _draw_curves(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw NDCG@10 relative to `recent`, in six groups of users of equal size by history length.

    Appended and one-time memories have bars only: their curves would hide others.
    """
    base = next((row for row in rows if row.variant == "recent"), None)
    if base is None:
        axis.set_axis_off()
        return
    order = np.argsort(base.lengths, kind="stable")
    groups = np.array_split(order, min(6, len(order)))
    x = [np.median(base.lengths[group]) for group in groups]
    reference = np.array([base.user_values()[group].mean() for group in groups])
    for row in rows:
        hidden = row.variant.endswith("_a") or row.records[0]["memory"] == "one_time"
        if not row.trained or hidden:
            continue
        values = np.array([row.user_values()[group].mean() for group in groups])
        style = {"marker": "o", "ms": 4, "color": _choose_colour(row)}
        axis.plot(x, values / reference, _choose_line(row.variant), label=row.label, **style)
    axis.set_xscale("log")
    axis.set_xticks(x, [f"{events:,.0f}" for events in x], fontsize=8, rotation=45)
    axis.set_xticks([], minor=True)
    axis.set_xlabel("events in the user's history")
    axis.set_ylabel("NDCG@10 relative to recent")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _remove_frame(axis)


def _choose_colour(row: Row) -> str:
    return COLOURS.get(row.records[0]["method"], _OTHERS)


def _choose_line(variant: str) -> str:
    """Return a line style: rows of a family share their colour and differ in their lines."""
    for ending, style in (("_528", "--"), ("_exact", "--"), ("_a", "-.")):
        if variant.endswith(ending):
            return style
    return "-"


def _remove_frame(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
