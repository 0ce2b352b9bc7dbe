"""Tables of what storing a memory costs and how it ages, made from rows alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from launch.experiments.rows import Row, TargetValues
from launch.experiments.tables import format_markdown, tabulate_drift
from rec2pm_jax.evaluate.bootstrap import Interval, paired_bootstrap
from rec2pm_jax.evaluate.metrics import user_means
from rec2pm_jax.methods.codec import FORMATS
from rec2pm_jax.methods.segments import archived

MANY_UPDATES = 20  # of users in whom the error of a stored memory was fed back at least so often


def tabulate_quantised(rows: Sequence[Row]) -> list[str]:
    """Return NDCG@10 by format of the stored memory, and how far rounded memories drift.

    Methods stand down, each for all users and for those with many updates, on test targets alone and
    together with those of validation; formats stand across.
    """
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        key = row.records[0]["stored"], row.records[0]["split"]
        found.setdefault(row.variant.split("/")[0], {})[key] = row
    base, *others = FORMATS
    header = ["method", "targets", "users", base]
    header += [f"{kind}: {what}" for kind in others for what in ("difference", "ratio")]
    header += [f"bytes, {kind}" for kind in FORMATS]
    body = []
    for method, by_kind in found.items():
        exact = by_kind[base, "test"]
        data = exact.records[0]["config"]["data"]
        many = archived(exact.lengths, data["segment"], data["recent"]) // data["segment"]
        many = many >= MANY_UPDATES
        groups = [("all", np.ones_like(many)), (f">= {MANY_UPDATES} updates", many)]
        sizes = [f"{by_kind[k, 'test'].records[0]['state_bytes_per_user']:,}" for k in FORMATS]
        for splits, (name, users) in itertools.product((("test",), ("test", "validation")), groups):
            if not users.any():
                continue
            values = {
                kind: np.mean([by_kind[kind, s].ndcg.mean(axis=0)[users] for s in splits], axis=0)
                for kind in FORMATS
            }
            cells = [method, " and ".join(splits), f"{name} ({users.sum()})"]
            cells.append(f"{100 * values[base].mean():.3f}")
            for kind in others:
                paired = paired_bootstrap(values[kind], values[base])
                cells += [_format_points(paired.difference), _format_ratio(paired.ratio, 4)]
            body.append(cells + sizes)
    lines = format_markdown(header, body)
    drift = tabulate_drift(rows)
    if drift:
        lines += [
            "",
            "Squared distance from the float32 memory after so many updates, as a share of "
            "the variance between users (number of users):",
            "",
            *drift,
        ]
    return lines


def tabulate_since_archive(rows: Sequence[Row], reference: str = "full") -> list[str]:
    """Return NDCG@10 by the number of raw events that a read sees, as ratios to a reference.

    Methods stand down: NDCG@10 over all targets, and ratios over the same targets. Methods without a
    memory are grouped as if they had one, with their S and R.
    """
    base = next((row for row in rows if row.variant == reference), None)
    raw = {row.variant: _count_raw_events(row) for row in rows}
    width = max(1, rows[0].records[0]["config"]["data"]["segment"] // 5)
    longest = max(int(events.max()) for events in raw.values())
    bins = [(low, low + width - 1) for low in range(1, longest + 1, width)]
    header = ["method", "S, R", "all targets", f"/ {reference}"]
    header += [f"{low}-{high}" if high > low else f"{low}" for low, high in bins]
    body = []
    for row in sorted(rows, key=Row.mean, reverse=True):
        data = row.records[0]["config"]["data"]
        cells = [row.label, f"{data['segment']}, {data['recent']}", f"{100 * row.mean():.2f}"]
        for low, high in [(1, longest), *bins]:
            chosen = (raw[row.variant] >= low) & (raw[row.variant] <= high)
            cells.append(_format_at(row, base, chosen))
        body.append(cells)
    return format_markdown(header, body)


def _count_raw_events(row: Row) -> np.ndarray:
    """Return how many raw events each read sees, int [targets]: those since the last archive."""
    data, position = row.records[0]["config"]["data"], _targets(row).position
    return position - archived(position, data["segment"], data["recent"])


def _format_at(row: Row, base: Row | None, chosen: np.ndarray) -> str:
    """Return the ratio to `base` over the chosen targets, or NDCG@10 in % without a base."""
    if not chosen.any():
        return "-"
    targets = _targets(row)
    user = targets.user[chosen]
    values = user_means(targets.ndcg[chosen], user)
    if base is None:
        return f"{100 * values.mean():.2f}"
    if row is base:
        return "1"
    reference = _targets(base)
    if not np.array_equal(targets.position, reference.position):
        raise ValueError(f"{row.variant} and {base.variant} were evaluated on different targets.")
    return _format_ratio(
        paired_bootstrap(values, user_means(reference.ndcg[chosen], user)).ratio, 3
    )


def _targets(row: Row) -> TargetValues:
    if row.targets is None:
        raise ValueError(f"{row.variant} has no values of single targets.")
    return row.targets


def _format_points(interval: Interval) -> str:
    estimate, low, high = (100 * value for value in interval)
    return f"{estimate:+.4f} ({low:+.4f}..{high:+.4f})"


def _format_ratio(interval: Interval, digits: int) -> str:
    estimate, low, high = (f"{value:.{digits}f}" for value in interval)
    return f"{estimate} ({low}..{high})"
