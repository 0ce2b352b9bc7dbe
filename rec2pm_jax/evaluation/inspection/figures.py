"""The figures of an inspection: six panels as PNG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rec2pm_jax.evaluation.inspection.measure import RECENT_EVENTS, Inspection
from rec2pm_jax.os_errors import write_error
from rec2pm_jax.plotting import pyplot, save

Axes: TypeAlias = Any  # matplotlib.axes.Axes; matplotlib is optional

_DECADES = {1: "1 s", 60: "1 min", 3600: "1 h", 86_400: "1 d", 604_800: "1 w", 31_536_000: "1 y"}


def _draw_lengths(axis: Axes, found: Inspection) -> None:
    edges = np.unique(np.geomspace(1, found.lengths.max() + 1, 40).astype(int))
    axis.hist(found.lengths, bins=edges, color="#5d6d7e")
    axis.axvline(np.median(found.lengths), color="#c0392b", lw=1, label="median")
    axis.set(xscale="log", xlabel="events per user", ylabel="users", title="History lengths")
    axis.legend(frameon=False)


def _draw_popularity(axis: Axes, found: Inspection) -> None:
    rank = np.arange(1, len(found.counts) + 1)
    axis.plot(rank, found.counts, color="#5d6d7e")
    axis.set(xscale="log", yscale="log", xlabel="rank of the item", ylabel="events")
    axis.set_title("Popularity, and share of all events (red)")
    share = axis.twinx()
    share.plot(rank, np.cumsum(found.counts) / found.events, color="#c0392b")
    share.set_ylim(0, 1)


def _draw_over_time(axis: Axes, found: Inspection) -> None:
    axis.set_title("Events over time")
    if found.times is None:
        return _leave_empty(axis, "no times")
    days = found.times // 86_400
    span = int(days.max() - days.min()) + 1
    # Days per step: whole weeks, because people have weekly habits.
    width = 1 if span <= 180 else 7 * max(1, round(span / 7 / 120))
    bars = np.bincount((days - days.min()) // width)
    start = (days.min() + width * np.arange(len(bars))).astype("datetime64[D]")
    axis.step(start, bars, where="post", color="#5d6d7e")
    axis.set(ylabel=f"events per {width} days" if width > 1 else "events per day", ylim=(0, None))
    axis.tick_params(axis="x", rotation=30)


def _draw_repeats(axis: Axes, found: Inspection) -> None:
    edges = np.unique(np.geomspace(1, found.position.max() + 2, 30).astype(int))
    place = np.digitize(found.position + 1, edges) - 1
    size = np.bincount(place, minlength=len(edges))
    for label, again in (
        ("ever before", found.since > 0),
        (f"among the last {RECENT_EVENTS}", (found.since > 0) & (found.since <= RECENT_EVENTS)),
    ):
        share = np.bincount(place, weights=again, minlength=len(edges)) / np.maximum(size, 1)
        axis.plot(edges[size >= 50], share[size >= 50], label=label)
    axis.set(xscale="log", xlabel="place in the history", ylabel="share of events", ylim=(0, 1))
    axis.set_title("Items the user had before")
    axis.legend(frameon=False)


def _draw_gaps(axis: Axes, found: Inspection) -> None:
    axis.set_title("Time between a user's events")
    if found.gaps is None or not (found.gaps > 0).any():
        return _leave_empty(axis, "no times" if found.gaps is None else "all zero")
    positive = found.gaps[found.gaps > 0]
    axis.hist(positive, bins=np.geomspace(1, positive.max() + 1, 50), color="#5d6d7e")
    axis.set(xscale="log", ylabel="events", xlabel=f"gap; {(found.gaps == 0).mean():.0%} are zero")
    shown = [second for second in _DECADES if second <= positive.max()]
    axis.set_xticks(shown, [_DECADES[second] for second in shown], minor=False)
    axis.minorticks_off()


def _draw_windows(axis: Axes, found: Inspection) -> None:
    axis.set_title("Gain of longer windows")
    if found.curve is None:
        return _leave_empty(axis, "no user has enough events")
    curve = found.curve
    labels = [str(window or "all") for window in curve.windows]
    axis.plot(labels, 100 * np.array(curve.ndcg), marker="o", label="personal frequency")
    axis.axhline(100 * curve.popularity, ls="--", color="#5d6d7e", label="popularity")
    axis.set(xlabel="newest events counted", ylabel="NDCG@10, %", ylim=(0, None))
    axis.legend(frameon=False)


def _leave_empty(axis: Axes, why: str) -> None:
    axis.text(0.5, 0.5, why, ha="center", transform=axis.transAxes)
    axis.set_xticks([])
    axis.set_yticks([])


PANELS: dict[str, Callable[[Axes, Inspection], None]] = {
    "lengths": _draw_lengths,
    "popularity": _draw_popularity,
    "time": _draw_over_time,
    "repeats": _draw_repeats,
    "gaps": _draw_gaps,
    "windows": _draw_windows,
}


def draw_figures(found: Inspection, name: str, directory: Path) -> list[Path]:
    """Write overview.png and one PNG per panel.

    Args:
      found: the numbers.
      name: of the dataset, the title of the overview.
      directory: where to write; made if needed.

    Returns:
      The files.

    Raises:
      UserError: matplotlib is not installed, or the files cannot be written.
    """
    try:
        return _write_figures(found, name, directory)
    except OSError as error:
        raise write_error(directory, error) from error


def _write_figures(found: Inspection, name: str, directory: Path) -> list[Path]:
    plt = pyplot()
    directory.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    figure.suptitle(name)
    for axis, panel in zip(axes.flat, PANELS.values(), strict=True):
        panel(axis, found)
    paths = [directory / "overview.png"]
    save(figure, paths[0])
    for label, panel in PANELS.items():
        figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
        panel(axis, found)
        paths.append(directory / f"{label}.png")
        save(figure, paths[-1])
    return paths
