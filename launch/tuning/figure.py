"""The figure of a search: the curve of every run, and its metric by the value of each field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.tuning.results import TunedRun, find_best, format_value
from launch.tuning.space import Dimension
from launch.tuning.study import Plan
from rec2pm_jax.plotting import pyplot, save

Axes = Any  # of matplotlib, which is imported only when a figure is drawn
_BEST, _PRESET, _OTHERS = "#c0392b", "#34495e", "#aab2b8"
_COLUMNS = 3


def draw_search(plan: Plan, runs: Sequence[TunedRun], path: Path) -> None:
    """Draw a search.

    Args:
      plan: of the search.
      runs: its runs.
      path: PNG to write.

    Raises:
      UserError: matplotlib is not installed.
    """
    count = 1 + len(plan.dimensions)
    lines = math.ceil(count / _COLUMNS)
    figure, axes = pyplot().subplots(
        *(lines, min(count, _COLUMNS)),
        figsize=(4.2 * min(count, _COLUMNS), 3.6 * lines),
        squeeze=False,
        layout="constrained",
    )
    panels = list(axes.flat)
    _draw_curves(panels[0], plan, runs)
    for axis, dimension in zip(panels[1:], plan.dimensions, strict=False):
        _draw_field(axis, dimension, runs, plan.rungs[0])
    for axis in panels[count:]:
        axis.set_axis_off()
    save(figure, path)


def _draw_curves(axis: Axes, plan: Plan, runs: Sequence[TunedRun]) -> None:
    """Draw the metric of every run at the rungs."""
    best = find_best(runs)
    for run in reversed(runs):  # the best ones last, above the others
        colour, width, label = _OTHERS, 1.0, None
        if run is best:
            name = "preset" if run.is_preset else f"run {run.number}"
            colour, width, label = _BEST, 2.2, f"best: {name}"
        elif run.is_preset:
            colour, width, label = _PRESET, 1.8, "preset"
        steps = list(run.values)
        values = [100 * value for value in run.values.values()]
        axis.plot(steps, values, marker="o", ms=3, lw=width, color=colour, label=label)
    axis.set_xscale("log")
    axis.set_xticks(plan.rungs, [str(rung) for rung in plan.rungs])
    axis.minorticks_off()
    axis.set_xlabel("training steps")
    axis.set_ylabel("validation NDCG@10, %")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_field(axis: Axes, dimension: Dimension, runs: Sequence[TunedRun], rung: int) -> None:
    """Draw the metric at the first rung by the value of a field."""
    best, field = find_best(runs), dimension.field
    reached = [run for run in runs if rung in run.values]
    choices = getattr(dimension.distribution, "choices", None)
    for run in reached:
        at = choices.index(run.setting[field]) if choices else run.setting[field]
        colour = _BEST if run is best else _PRESET if run.is_preset else _OTHERS
        size = 40 if run is best or run.is_preset else 22
        axis.scatter([at], [100 * run.values[rung]], s=size, color=colour, zorder=2 + (size > 30))
    if choices:
        axis.set_xticks(range(len(choices)), [format_value(choice) for choice in choices])
        axis.set_xlim(-0.5, len(choices) - 0.5)
    elif dimension.distribution.log:  # type: ignore[attr-defined]
        low, high = dimension.corners()
        axis.set_xscale("log")
        axis.set_xticks([low, math.sqrt(low * high), high])
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        axis.minorticks_off()
    axis.set_xlabel(field)
    axis.set_ylabel(f"NDCG@10 after {rung} steps, %")
    axis.spines[["top", "right"]].set_visible(False)
