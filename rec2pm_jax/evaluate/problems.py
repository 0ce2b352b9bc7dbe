"""What is odd about a dataset, in words that say what to do."""

from __future__ import annotations

import time

import numpy as np

from rec2pm_jax.data.moments import show_day
from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.evaluate.inspection import RECENT, Inspection


def problems(found: Inspection) -> list[str]:
    """What a careful person would ask about before training; empty when nothing stands out."""
    lengths, counts, events = found.lengths, found.counts, found.events
    user, longest = found.largest
    title, top = found.top_item
    rare, short = counts < 5, lengths < split_rule("last_10").min_events
    at_longest = (lengths == longest).mean()
    again = (found.since == 1).mean()
    flagged = [
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
            f"{short.mean():.0%} of users have fewer than 21 events and no targets under last_10: "
            "use leave_one_out, or --min_user_events",
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
            again > 0.1,
            f"{again:.0%} of events repeat the item just before them: one action logged twice?",
        ),
        *_time_problems(found),
        *_gain_problems(found),
    ]
    return [text for is_so, text in flagged if is_so]


def _time_problems(found: Inspection) -> list[tuple[bool, str]]:
    if found.times is None:
        return [(True, "no times, only an order: no temporal split, no time bias, no gaps")]
    first, low, high, last = np.quantile(found.times, [0, 0.01, 0.99, 1])
    if first == last:
        return [
            (True, f"all events share one time, {show_day(first)}: the order within a user is lost")
        ]
    tied = (found.gaps == 0).mean() if len(found.gaps) else 0.0
    how = "shuffled by a hash" if found.ties == "shuffle" else "in the order of the source"
    bulk = max(high - low, 86_400)
    return [
        (
            tied > 0.2,
            f"{tied:.0%} of events share their second with the one before (baskets, or coarse "
            f"times): {how}, so the order within says nothing"
            + (" or leaks" if found.ties == "keep" else ""),
        ),
        (
            low - first > 5 * bulk or last - high > 5 * bulk,
            f"a few times lie far outside of the rest ({show_day(low)} .. {show_day(high)}): from "
            f"{show_day(first)} to {show_day(last)}",
        ),
        (
            last > time.time() + 86_400,
            f"events in the future, until {show_day(last)}: another unit of time?",
        ),
        (
            last < 86_400 * 365,
            "times begin in 1970: relative times, or another unit?",
        ),
    ]


def _gain_problems(found: Inspection) -> list[tuple[bool, str]]:
    gain = found.gain
    if gain is None:
        return [(True, "nobody has the 3 events of leave_one_out: nothing to evaluate")]
    whole, best = gain.ndcg[-1], max(gain.ndcg)
    long = (found.lengths >= 4 * RECENT).mean() > 0.1
    recent = gain.ndcg[gain.windows.index(RECENT)] if RECENT in gain.windows else gain.ndcg[0]
    return [
        (
            best <= gain.popularity,
            "personal frequency does not beat popularity: what a user had before says little by "
            "counting alone",
        ),
        (
            long and gain.popularity < best and whole < 1.02 * recent,
            f"the whole history is worth no more than the last {RECENT} events to personal "
            "frequency: memory of more has to pay by other means than counting",
        ),
    ]
