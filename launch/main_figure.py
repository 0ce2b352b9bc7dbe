"""The figure of the main suite: accuracy of every method, and by length of the history."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from launch.compare import COLOURS, pyplot, save
from rec2pm_jax.evaluate.bootstrap import bootstrap


def draw(tables, path: str | Path) -> None:
    """One line of two panels per dataset and backbone; `tables` as `summaries.collect` gives them.

    Raises:
      UserError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots(
        len(tables), 2, figsize=(12, 4.4 * len(tables)), squeeze=False, layout="constrained"
    )
    for (bars, curves), ((dataset, backbone), rows) in zip(axes, tables.items(), strict=True):
        _bars(bars, rows)
        bars.set_title(f"{dataset}, {backbone}", fontsize=10, loc="left")
        _curves(curves, rows)
    save(figure, path)


def _family(row) -> str:
    return row.records[0]["method"]


def _bars(axis, rows) -> None:
    intervals = np.array([bootstrap(100 * row.values(False)) for row in rows])
    mean, low, high = intervals.T
    fill = [COLOURS.get(_family(row), "#d5d8dc") for row in rows]
    errors = np.stack([mean - low, high - mean])
    names = [row.label for row in rows]
    axis.barh(names, mean, xerr=errors, color=fill, error_kw={"lw": 1, "capsize": 2})
    for i, row in enumerate(rows):
        state = row.records[0]["state_bytes_per_user"]
        text = f" {mean[i]:.2f}" + (f"   {state:,} B/user" if state else "")
        axis.text(high[i], i, text, va="center", fontsize=8)
    axis.set_xlim(0, high.max() * 1.35)
    axis.set_xlabel("NDCG@10, %, full catalogue (bars: 95 % interval over users)")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


def _curves(axis, rows) -> None:
    """NDCG@10 against `recent`, in six groups of users of equal size by length of the history."""
    by_name = {row.variant: row for row in rows}
    base = by_name.get("recent")
    if base is None:
        axis.set_axis_off()
        return
    order = np.argsort(base.lengths, kind="stable")
    groups = np.array_split(order, min(6, len(order)))
    x = [np.median(base.lengths[group]) for group in groups]
    reference = np.array([base.values(False)[group].mean() for group in groups])
    for row in rows:
        if _family(row) not in COLOURS:
            continue
        values = np.array([row.values(False)[group].mean() for group in groups])
        style = "--" if row.variant.endswith("_a") else "-"
        axis.plot(
            x,
            values / reference,
            style,
            marker="o",
            ms=4,
            color=COLOURS[_family(row)],
            label=row.label,
        )
    axis.set_xscale("log")
    axis.set_xlabel("events in the user's history")
    axis.set_ylabel("NDCG@10 relative to recent")
    axis.legend(frameon=False, fontsize=8, ncols=2)
    axis.spines[["top", "right"]].set_visible(False)
