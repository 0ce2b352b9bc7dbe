"""What is unusual about a dataset, and what to do about it."""

from __future__ import annotations

import time

import numpy as np

from rec2pm_jax.data.dates import format_date
from rec2pm_jax.data.splits import LAST_10, LEAVE_ONE_OUT
from rec2pm_jax.evaluation.inspection.measure import RECENT_EVENTS, Inspection


def find_problems(found: Inspection) -> list[str]:
    """Return one sentence for each thing to look into before training; empty if there is none."""
    lengths, counts, events = found.lengths, found.counts, found.events
    user, longest = found.largest
    title, top = found.top_item
    rare, short = counts < 5, lengths < LAST_10.min_events
    at_longest = (lengths == longest).mean()
    checks = [
        (
            longest > 0.05 * events and len(lengths) >= 20,
            f"user {user} has {longest / events:.0%} of all events: a robot, or a shared account?",
        ),
        (
            longest > 10_000 and longest > 100 * np.median(lengths),
            f"user {user} has {longest:,} events, {longest / np.median(lengths):,.0f} times the "
            "median: a robot?",
        ),
        (
            top > 0.2 * events,
            f"item {title!r} has {top / events:.0%} of all events: popularity will be hard to beat",
        ),
        (
            rare.mean() > 0.5,
            f"{rare.mean():.0%} of items have fewer than 5 events ({counts[rare].sum() / events:.0%} "
            "of events): try --min_item_count=5",
        ),
        (
            short.mean() > 0.5,
            f"{short.mean():.0%} of users have fewer than {LAST_10.min_events} events and no targets "
            "under last_10: use leave_one_out, or --min_user_events",
        ),
        (
            at_longest > 0.3 and longest > 2,
            f"{at_longest:.0%} of users have exactly {longest} events, the most there are: was the "
            "source cut there?",
        ),
        (
            len(lengths) < 100,
            f"only {len(lengths)} users: intervals over users will be wide",
        ),
        (len(counts) < 50, f"only {len(counts)} items: every ranking will look good"),
        (
            found.doubled > 0.1,
            f"{found.doubled:.0%} of events repeat the item just before them"
            f"{' at the same time' if found.times is not None else ''}: one action logged twice?",
        ),
        *_check_times(found),
        *_check_windows(found),
    ]
    return [text for applies, text in checks if applies]


def _check_times(found: Inspection) -> list[tuple[bool, str]]:
    if found.times is None or found.gaps is None:
        return [(True, "no times, only an order: no temporal split, no time bias, no gaps")]
    first, low, high, last = np.quantile(found.times, [0, 0.01, 0.99, 1])
    if first == last:
        lost = ": the order within a user is lost" if found.ties == "shuffle" else ""
        return [(True, f"all events share one time, {format_date(first)}{lost}")]
    tied = (found.gaps == 0).mean() if len(found.gaps) else 0.0
    most = max(high - low, 86_400)  # seconds that 98 % of events span
    return [
        (
            tied > 0.2 and found.ties == "shuffle",
            f"{tied:.0%} of events share their second with the one before (baskets, or coarse "
            "times): shuffled by a hash, so the order within says nothing",
        ),
        (
            tied > 0.05 and found.ties != "shuffle" and found.sorted_ties > 0.9,
            f"{found.sorted_ties:.0%} of neighbours with equal times are sorted by item: their order "
            "gives away the next item; use --ties=shuffle and no --order_column",
        ),
        (
            low - first > 5 * most or last - high > 5 * most,
            f"a few times lie far outside of the rest ({format_date(low)} .. {format_date(high)}): "
            f"from {format_date(first)} to {format_date(last)}",
        ),
        (
            last > time.time() + 86_400,
            f"events in the future, until {format_date(last)}: another unit of time?",
        ),
        (
            last < 86_400 * 365,
            "times begin in 1970: relative times, or another unit?",
        ),
    ]


def _check_windows(found: Inspection) -> list[tuple[bool, str]]:
    curve = found.curve
    if curve is None:
        text = f"no user has the {LEAVE_ONE_OUT.min_events} events of leave_one_out: no targets"
        return [(True, text)]
    whole, best = curve.ndcg[-1], max(curve.ndcg)
    has_long_users = (found.lengths >= 4 * RECENT_EVENTS).mean() > 0.1
    recent = curve.ndcg[0]
    if RECENT_EVENTS in curve.windows:
        recent = curve.ndcg[curve.windows.index(RECENT_EVENTS)]
    return [
        (
            best <= curve.popularity,
            "personal frequency does not beat popularity: counting a user's own items predicts "
            "little",
        ),
        (
            has_long_users and curve.popularity < best and whole < 1.02 * recent,
            f"personal frequency gains nothing from more than the last {RECENT_EVENTS} events: a "
            "long memory must help by other means than counting",
        ),
    ]
