"""The report of an inspection: one screen of text."""

from __future__ import annotations

import numpy as np

from rec2pm_jax.data.dates import format_date
from rec2pm_jax.evaluation.inspection.measure import RECENT_EVENTS, Inspection, WindowCurve
from rec2pm_jax.evaluation.inspection.problems import find_problems
from rec2pm_jax.evaluation.inspection.settings import suggest_settings

_UNITS = (("min", 60), ("h", 60), ("d", 24), ("y", 365))
_Row = tuple[str, str]  # a label, and its text


def format_report(found: Inspection, name: str) -> str:
    """Return about twenty lines: sizes, distributions, the gain of longer windows, problems.

    Args:
      found: the numbers.
      name: of the dataset.
    """
    lengths, counts = found.lengths, found.counts
    sampled, looked = len(found.sample.users), len(found.sample.ids)
    whole = "all" if sampled == len(lengths) else "a sample of"
    longer = ", ".join(f">= {n}: {(lengths >= n).mean():.0%}" for n in (50, 200, 1000))
    top = max(1, len(counts) // 100)
    top_share = counts[:top].sum() / found.events
    rows = [
        (
            "size",
            f"{len(lengths):,} users, {len(counts):,} items, {found.events:,} events; below: "
            f"{whole} {sampled:,} users, {looked:,} events",
        ),
        ("events per user", f"{_format_quantiles(lengths)}; users {longer}"),
        ("events per item", f"{_format_quantiles(counts)}; top 1 % of items: {top_share:.0%}"),
        ("repeats", _describe_repeats(found)),
    ]
    if found.types:
        largest = sorted(found.types.items(), key=lambda item: -item[1])[:6]
        rows.append(("event types", ", ".join(f"{kind} {share:.1%}" for kind, share in largest)))
    if found.times is not None:
        first, last = int(found.times.min()), int(found.times.max())
        days = (last - first) / 86_400
        rows.append(("time", f"{format_date(first)} .. {format_date(last)}, {days:,.0f} days"))
    if found.gaps is not None and len(found.gaps):
        rows.append(("gaps", _describe_gaps(found.gaps)))
    if found.curve is not None:
        rows += _describe_windows(found.curve)
    rows += [("try" if n == 0 else "", text) for n, text in enumerate(suggest_settings(found))]
    lines = [name, *(f"{label:<17}{text}".rstrip() for label, text in rows), ""]
    lines += [f"! {text}" for text in find_problems(found)] or ["nothing stands out"]
    return "\n".join(lines)


def _describe_repeats(found: Inspection) -> str:
    repeated = found.since > 0
    text = f"{repeated.mean():.0%} of events are of an item the user had before"
    later = found.position >= RECENT_EVENTS
    if not (later & repeated).any():
        return text
    older = (found.since[later & repeated] > RECENT_EVENTS).mean()
    return (
        f"{text}; beyond event {RECENT_EVENTS}: {repeated[later].mean():.0%}, of which {older:.0%} "
        f"not among the last {RECENT_EVENTS}"
    )


def _describe_gaps(gaps: np.ndarray) -> str:
    text = f"{(gaps == 0).mean():.0%} zero"
    positive = gaps[gaps > 0]
    if not len(positive):
        return text
    median, p90, longest = (_format_duration(q) for q in np.quantile(positive, [0.5, 0.9, 1]))
    return f"{text}; else median {median}, 90 % {p90}, longest {longest}"


def _describe_windows(curve: WindowCurve) -> list[_Row]:
    values = "  ".join(
        f"{window or 'all'}: {100 * value:.1f}"
        for window, value in zip(curve.windows, curve.ndcg, strict=True)
    )
    return [
        ("longer windows", f"NDCG@10 % of personal frequency over the last n events ({values})"),
        (
            "",
            f"popularity {100 * curve.popularity:.1f}; {curve.users} users, {curve.protocol}, "
            "validation targets, full catalogue",
        ),
    ]


def _format_quantiles(values: np.ndarray) -> str:
    quantiles = np.quantile(values, [0, 0.1, 0.5, 0.9, 0.99, 1], method="inverted_cdf")
    names = ("min", "10 %", "median", "90 %", "99 %", "max")
    return ", ".join(f"{name} {value:,}" for name, value in zip(names, quantiles, strict=True))


def _format_duration(seconds: float) -> str:
    unit = "s"
    for larger, size in _UNITS:
        if seconds < size:
            break
        seconds, unit = seconds / size, larger
    return f"{seconds:.3g} {unit}"
