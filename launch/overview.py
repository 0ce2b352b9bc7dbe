"""The report and the figures of `launch.inspect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rec2pm_jax.data.moments import show_day
from rec2pm_jax.evaluate.inspection import RECENT, Inspection
from rec2pm_jax.evaluate.problems import problems
from rec2pm_jax.plotting import pyplot, save

_UNITS = (("min", 60), ("h", 60), ("d", 24), ("y", 365))
_DECADES = {1: "1 s", 60: "1 min", 3600: "1 h", 86_400: "1 d", 604_800: "1 w", 31_536_000: "1 y"}


def report(found: Inspection, name: str) -> str:
    """About twenty lines: sizes, distributions, what longer windows are worth, problems."""
    lengths, counts = found.lengths, found.counts
    sampled, looked = len(found.sample.users), len(found.sample.ids)
    whole = "all" if sampled == len(lengths) else "a sample of"
    longer = ", ".join(f">= {n}: {(lengths >= n).mean():.0%}" for n in (50, 200, 1000))
    cumulative = np.cumsum(counts) / found.events
    top = max(1, len(counts) // 100)
    later = found.position >= RECENT
    seen = found.since > 0
    rows = [
        (
            "size",
            f"{len(lengths):,} users, {len(counts):,} items, {found.events:,} events; below: "
            f"{whole} {sampled:,} users, {looked:,} events",
        ),
        ("events per user", f"{_quantiles(lengths)}; users {longer}"),
        ("events per item", f"{_quantiles(counts)}; top 1 % of items: {cumulative[top - 1]:.0%}"),
        (
            "repeats",
            f"{seen.mean():.0%} of events are of an item the user had before"
            + (
                f"; beyond event {RECENT}: {seen[later].mean():.0%}, of which "
                f"{(found.since[later & seen] > RECENT).mean():.0%} not among the last {RECENT}"
                if (later & seen).any()
                else ""
            ),
        ),
    ]
    if found.types:
        largest = sorted(found.types.items(), key=lambda item: -item[1])[:6]
        rows.append(("event types", ", ".join(f"{kind} {share:.1%}" for kind, share in largest)))
    if found.times is not None:
        first, last = int(found.times.min()), int(found.times.max())
        rows.append(
            ("time", f"{show_day(first)} .. {show_day(last)}, {(last - first) / 86_400:,.0f} days")
        )
    if found.gaps is not None and len(found.gaps):
        moved = found.gaps[found.gaps > 0]
        rows.append(
            (
                "gaps",
                f"{(found.gaps == 0).mean():.0%} zero"
                + (
                    "; else median {}, 90 % {}, longest {}".format(
                        *(_duration(q) for q in np.quantile(moved, [0.5, 0.9, 1]))
                    )
                    if len(moved)
                    else ""
                ),
            )
        )
    if found.gain is not None:
        gain = found.gain
        curve = "  ".join(
            f"{window or 'all'}: {100 * value:.1f}"
            for window, value in zip(gain.windows, gain.ndcg, strict=True)
        )
        rows += [
            ("longer windows", f"NDCG@10 % of personal frequency over the last n events ({curve})"),
            (
                "",
                f"popularity {100 * gain.popularity:.1f}; {gain.users} users, {gain.protocol}, "
                "validation targets, full catalogue",
            ),
        ]
    lines = [name, *(f"{label:<17}{text}".rstrip() for label, text in rows)]
    flagged = problems(found)
    lines.append("")
    lines += [f"! {text}" for text in flagged] or ["nothing stands out"]
    return "\n".join(lines)


def _quantiles(values: np.ndarray) -> str:
    quantiles = np.quantile(values, [0, 0.1, 0.5, 0.9, 0.99, 1], method="inverted_cdf")
    names = ("min", "10 %", "median", "90 %", "99 %", "max")
    return ", ".join(f"{name} {value:,}" for name, value in zip(names, quantiles, strict=True))


def _duration(seconds: float) -> str:
    unit = "s"
    for larger, size in _UNITS:
        if seconds < size:
            break
        seconds, unit = seconds / size, larger
    return f"{seconds:.3g} {unit}"


def _lengths(axis, found: Inspection) -> None:
    edges = np.unique(np.geomspace(1, found.lengths.max() + 1, 40).astype(int))
    axis.hist(found.lengths, bins=edges, color="#5d6d7e")
    axis.axvline(np.median(found.lengths), color="#c0392b", lw=1, label="median")
    axis.set(xscale="log", xlabel="events per user", ylabel="users", title="History lengths")
    axis.legend(frameon=False)


def _popularity(axis, found: Inspection) -> None:
    rank = np.arange(1, len(found.counts) + 1)
    axis.plot(rank, found.counts, color="#5d6d7e")
    axis.set(xscale="log", yscale="log", xlabel="rank of the item", ylabel="events")
    axis.set_title("Popularity, and share of all events (red)")
    share = axis.twinx()
    share.plot(rank, np.cumsum(found.counts) / found.events, color="#c0392b")
    share.set_ylim(0, 1)


def _over_time(axis, found: Inspection) -> None:
    axis.set_title("Events over time")
    if found.times is None:
        return _nothing(axis, "no times")
    days = found.times // 86_400
    span = int(days.max() - days.min()) + 1
    # Days per step; whole weeks, as people have weekly habits.
    width = 1 if span <= 180 else 7 * max(1, round(span / 7 / 120))
    bars = np.bincount((days - days.min()) // width)
    start = (days.min() + width * np.arange(len(bars))).astype("datetime64[D]")
    axis.step(start, bars, where="post", color="#5d6d7e")
    axis.set(ylabel=f"events per {width} days" if width > 1 else "events per day", ylim=(0, None))
    axis.tick_params(axis="x", rotation=30)


def _repeats(axis, found: Inspection) -> None:
    edges = np.unique(np.geomspace(1, found.position.max() + 2, 30).astype(int))
    place = np.digitize(found.position + 1, edges) - 1
    size = np.bincount(place, minlength=len(edges))
    for label, again in (
        ("ever before", found.since > 0),
        (f"among the last {RECENT}", (found.since > 0) & (found.since <= RECENT)),
    ):
        share = np.bincount(place, weights=again, minlength=len(edges)) / np.maximum(size, 1)
        axis.plot(edges[size >= 50], share[size >= 50], label=label)
    axis.set(xscale="log", xlabel="place in the history", ylabel="share of events", ylim=(0, 1))
    axis.set_title("Items the user had before")
    axis.legend(frameon=False)


def _gaps(axis, found: Inspection) -> None:
    axis.set_title("Time between a user's events")
    if found.gaps is None or not (found.gaps > 0).any():
        return _nothing(axis, "no times" if found.gaps is None else "all zero")
    moved = found.gaps[found.gaps > 0]
    axis.hist(moved, bins=np.geomspace(1, moved.max() + 1, 50), color="#5d6d7e")
    axis.set(xscale="log", ylabel="events", xlabel=f"gap; {(found.gaps == 0).mean():.0%} are zero")
    shown = [second for second in _DECADES if second <= moved.max()]
    axis.set_xticks(shown, [_DECADES[second] for second in shown], minor=False)
    axis.minorticks_off()


def _windows(axis, found: Inspection) -> None:
    axis.set_title("What longer windows are worth")
    if found.gain is None:
        return _nothing(axis, "nobody is long enough")
    gain = found.gain
    labels = [str(window or "all") for window in gain.windows]
    axis.plot(labels, 100 * np.array(gain.ndcg), marker="o", label="personal frequency")
    axis.axhline(100 * gain.popularity, ls="--", color="#5d6d7e", label="popularity")
    axis.set(xlabel="newest events counted", ylabel="NDCG@10, %", ylim=(0, None))
    axis.legend(frameon=False)


def _nothing(axis, why: str) -> None:
    axis.text(0.5, 0.5, why, ha="center", transform=axis.transAxes)
    axis.set_xticks([])
    axis.set_yticks([])


PANELS: dict[str, Callable] = {
    "lengths": _lengths,
    "popularity": _popularity,
    "time": _over_time,
    "repeats": _repeats,
    "gaps": _gaps,
    "windows": _windows,
}


def draw(found: Inspection, name: str, directory: Path) -> list[Path]:
    """Writes overview.png and one PNG per panel; returns their paths.

    Raises:
      UserError: matplotlib is not installed.
    """
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
