"""The figures of `launch.reproduce`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from launch.compare import COLOURS, pyplot, save
from launch.tables import noise_levels
from rec2pm_jax.evaluate.bootstrap import bootstrap
from rec2pm_jax.evaluate.denoise import KINDS


def main(rows_of, path: str | Path) -> None:
    """Accuracy and state of every row, and accuracy by length of the history.

    rows_of: as `tables.collect` returns it; one line of two panels per dataset and backbone.

    Raises:
      UserError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots(
        len(rows_of), 2, figsize=(12, 4.4 * len(rows_of)), squeeze=False, layout="constrained"
    )
    for (bars, curves), ((dataset, backbone), rows) in zip(axes, rows_of.items(), strict=True):
        _bars(bars, rows)
        bars.set_title(f"{dataset}, {backbone}", fontsize=10, loc="left")
        _curves(curves, rows)
    save(figure, path)


def _family(row) -> str:
    return row.records[0]["method"]


def _style(variant: str) -> str:
    """Rows of a family share a colour, and differ in their lines."""
    for ending, style in (("_sketch", "--"), ("_a", "-."), ("lambda 0.1", ":")):
        if variant.endswith(ending):
            return style
    return "-"


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
    """NDCG@10 against `recent`, in six groups of users of equal size by length of the history.

    Rows that would hide others are left to the bars: appended memories, and one-time ones, which lie
    on the iterated ones.
    """
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
        hidden = row.variant.endswith("_a") or row.records[0]["memory"] == "one_time"
        if _family(row) not in COLOURS or hidden:
            continue
        values = np.array([row.values(False)[group].mean() for group in groups])
        axis.plot(
            x,
            values / reference,
            _style(row.variant),
            marker="o",
            ms=4,
            color=COLOURS[_family(row)],
            label=row.label,
        )
    axis.set_xscale("log")
    axis.set_xlabel("events in the user's history")
    axis.set_ylabel("NDCG@10 relative to recent")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.spines[["top", "right"]].set_visible(False)


def denoise(rows_of, path: str | Path) -> None:
    """What of the clean NDCG@10 is left as archived events are replaced; a panel per kind of noise.

    Raises:
      UserError: matplotlib is not installed.
    """
    figure, axes = pyplot().subplots(
        len(rows_of),
        len(KINDS),
        figsize=(11, 4.2 * len(rows_of)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for line, ((dataset, backbone), rows) in zip(axes, rows_of.items(), strict=True):
        for axis, kind in zip(line, KINDS, strict=True):
            for method, levels in noise_levels(rows).items():
                clean = next(iter(levels.values()))
                shares = [0.0, *(share for (k, share) in levels if k == kind and share)]
                left = [1.0, *(levels[kind, s].mean() / clean.mean() for s in shares[1:])]
                axis.plot(
                    shares,
                    left,
                    _style(method),
                    marker="o",
                    ms=4,
                    color=COLOURS[_family(clean)],
                    label=method,
                )
            axis.set_title(f"{dataset}, {backbone}: {kind} items", fontsize=10, loc="left")
            axis.set_xlabel("share of archived events replaced")
            axis.set_ylabel("NDCG@10 relative to clean")
            axis.legend(frameon=False, fontsize=8, ncols=2)
            axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def anatomy(rows_of, path: str | Path) -> None:
    """Attention of the one-pass queries over past segments, and the plane of users' memories.

    A line per method; where there is no one-pass memory, attention of the update on the memory.

    Raises:
      UserError: matplotlib is not installed.
    """
    plt = pyplot()
    rows = [row for table in rows_of.values() for row in table]
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(11, 4.4 * len(rows)), squeeze=False, layout="constrained"
    )
    for (left, right), row in zip(axes, rows, strict=True):
        found = row.records[0]["anatomy"]
        by_segment = found["attention"]["one_pass"]
        if by_segment is None:
            shares = np.array(found["attention"]["update"])[..., 0]
            for slot, values in enumerate(shares.T):
                left.plot(range(1, len(values) + 1), values, marker="o", ms=4, label=f"slot {slot}")
            left.set_xticks(range(1, len(shares) + 1))
            left.set_xlabel("layer")
            left.set_ylabel("attention of the query on the memory, update")
        else:
            for slot, shares in enumerate(by_segment[0]):
                left.plot(range(1, len(shares) + 1), shares, marker="o", ms=4, label=f"slot {slot}")
            left.set_xlabel("segments ago")
            left.set_ylabel("attention of the one-pass query, first layer")
        left.set_ylim(bottom=0)  # differences as large as they are
        left.set_title(row.label, fontsize=10, loc="left")
        left.legend(frameon=False, fontsize=8)
        plane, labels = np.array(found["plane"]), np.array(found["labels"])
        for name in sorted(set(labels)):
            right.scatter(*plane[labels == name].T, s=6, alpha=0.7, label=name.title())
        right.set_title(
            f"{row.label}: users by memory, coloured by dominant category", fontsize=10, loc="left"
        )
        right.set_xlabel("first principal component")
        right.set_ylabel("second")
        right.legend(
            frameon=False,
            fontsize=7,
            markerscale=2,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
        )
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)
