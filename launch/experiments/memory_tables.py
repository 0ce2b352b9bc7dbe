"""Tables of what storing a memory costs and how it ages, made from rows alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from launch.experiments.rows import Row, TargetValues
from launch.experiments.tables import format_markdown, tabulate_drift
from rec2pm_jax.evaluation.bootstrap import Interval, paired_bootstrap
from rec2pm_jax.evaluation.metrics import user_means
from rec2pm_jax.methods.codec import FORMATS
from rec2pm_jax.methods.segments import archived

MANY_UPDATES = 20  # of users in whom the error of a stored memory was fed back at least so often


def tabulate_quantised(rows: Sequence[Row]) -> list[str]:
    """Return NDCG@10 by format of the stored memory, and how far rounded memories drift.

    Methods stand down, each for all users and for those with many updates, on test targets alone and
    together with those of validation; formats stand across.
    """
    base, *others = FORMATS
    header = ["method", "targets", "users", base]
    header += [f"{kind}: {what}" for kind in others for what in ("difference", "ratio")]
    header += [f"bytes, {kind}" for kind in FORMATS]
    body = []
    for method, by_kind in _group_by_format(rows).items():
        sizes = [f"{by_kind[k, 'test'].records[0]['state_bytes_per_user']:,}" for k in FORMATS]
        for splits, (name, users) in itertools.product(
            (("test",), ("test", "validation")), _group_users(by_kind[base, "test"])
        ):
            values = _average_splits(by_kind, splits, users)
            cells = [method, " and ".join(splits), name, f"{100 * values[base].mean():.3f}"]
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


def tabulate_kept(rows: Sequence[Row]) -> list[str]:
    """Return which share of the float32 memory's NDCG@10 each format keeps, on test targets."""
    base, *others = FORMATS
    body = []
    for method, by_kind in _group_by_format(rows).items():
        for name, users in _group_users(by_kind[base, "test"]):
            values = _average_splits(by_kind, ("test",), users)
            ratios = (paired_bootstrap(values[kind], values[base]).ratio for kind in others)
            body.append([method, name, *(_format_ratio(ratio, 4) for ratio in ratios)])
    return format_markdown(["method", "users", *others], body)


ByFormat = dict[tuple[str, str], Row]  # (format, split) -> row


def _group_by_format(rows: Sequence[Row]) -> dict[str, ByFormat]:
    """Return the rows of each method."""
    found: dict[str, ByFormat] = {}
    for row in rows:
        key = row.records[0]["stored"], row.records[0]["split"]
        found.setdefault(row.variant.split("/")[0], {})[key] = row
    return found


def _group_users(row: Row) -> list[tuple[str, np.ndarray]]:
    """Return (name, bool [users]) of all users, and of those with many updates if there are any."""
    data = row.records[0]["config"]["data"]
    updates = archived(row.lengths, data["segment"], data["recent"]) // data["segment"]
    many = updates >= MANY_UPDATES
    groups = [("all", np.ones_like(many)), (f">= {MANY_UPDATES} updates", many)]
    return [(f"{name} ({users.sum()})", users) for name, users in groups if users.any()]


def _average_splits(
    by_kind: ByFormat, splits: Sequence[str], users: np.ndarray
) -> dict[str, np.ndarray]:
    """Return by format the mean over splits of some users' NDCG@10."""
    return {
        kind: np.mean([by_kind[kind, split].user_values()[users] for split in splits], axis=0)
        for kind in FORMATS
    }


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
