"""What a stream did: in total for its summary, and in the last second for its metrics."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rec2pm_jax.stream.lines.events import UNKNOWN_ITEM, RejectedInput

MAX_TIMINGS = 10_000  # newest ones kept
_EXAMPLES = 3  # lines quoted for each reason


def _new_timings() -> deque[float]:
    return deque(maxlen=MAX_TIMINGS)


@dataclasses.dataclass
class Summary:
    """What a stream did in total.

    Attributes:
      events: events applied.
      answers: requests answered.
      popular: those answered with the most frequent items, for users without events.
      fewer: those with fewer items than wanted, since filters left no more.
      updates: memory updates computed.
      commits: commits finished.
      skipped: lines that could not be used, by reason.
      examples: messages of the first skipped lines of each reason, with their places.
      unknown_items: events of unknown items among those applied.
      unknown_excluded: unknown items in `exclude` lists; such requests are answered all the same.
      other_workers: lines of users of other workers.
      seconds: from the first line to the last.
      update_ms: milliseconds per update, for each of the newest batches of updates.
      read_ms: milliseconds from a request's line being read to its answer, for the newest requests.
    """

    events: int = 0
    answers: int = 0
    popular: int = 0
    fewer: int = 0
    updates: int = 0
    commits: int = 0
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    unknown_items: int = 0
    unknown_excluded: int = 0
    other_workers: int = 0
    seconds: float = 0.0
    update_ms: deque[float] = dataclasses.field(default_factory=_new_timings)
    read_ms: deque[float] = dataclasses.field(default_factory=_new_timings)

    def skip(self, place: str, error: RejectedInput) -> None:
        """Count a line as skipped; `place` says which, as in "line 7"."""
        self.skipped[error.reason] += 1
        examples = self.examples.setdefault(error.reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(f"{place}: {error}")

    def format_report(self) -> list[str]:
        """Return the lines that a stream prints at its end."""
        report = []
        if self.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
            report.append(f"skipped {self.skipped.total()} lines: {reasons}")
        report += [f"  {example}" for examples in self.examples.values() for example in examples]
        if self.unknown_items:
            report.append(
                f"kept {self.unknown_items} events of {UNKNOWN_ITEM}s, without what they are"
            )
        if self.unknown_excluded:
            report.append(f"ignored {self.unknown_excluded} {UNKNOWN_ITEM}s in exclude lists")
        if self.popular:
            report.append(
                f"answered {self.popular} requests of users without events: the most frequent items, "
                'marked "popular"'
            )
        if self.fewer:
            report.append(
                f"filters left fewer items than wanted in {self.fewer} answers, which say how many "
                'were "wanted"'
            )
        if self.other_workers:
            report.append(f"left {self.other_workers} lines to other workers")
        rate = self.events / self.seconds if self.seconds else 0.0
        medians = [
            f"{name} {statistics.median(values):.2f} ms"
            for name, values in (("update", self.update_ms), ("read", self.read_ms))
            if values
        ]
        report.append(
            f"done: {self.events} events ({rate:.0f}/s), {self.updates} memory updates, "
            f"{self.answers} answers" + (f"; medians: {', '.join(medians)}" if medians else "")
        )
        return report


def percentiles(milliseconds: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p95 and p99 by name, rounded to microseconds; None without values.

    Example:
      >>> percentiles([1.0, 2.0, 3.0])
      {'p50': 2.0, 'p95': 2.9, 'p99': 2.98}
    """
    if not len(milliseconds):
        return None
    found = np.percentile(np.asarray(milliseconds), (50, 95, 99))
    return dict(zip(("p50", "p95", "p99"), (round(float(x), 3) for x in found), strict=True))


class EngineGauges(NamedTuple):
    """Values of an engine at one moment.

    Attributes:
      hits, misses: reads so far with and without an open session.
      queue: users whose memory is being updated or waits for it.
      cached_users: users in the process.
    """

    hits: int
    misses: int
    queue: int
    cached_users: int


class Meter:
    """Turns totals into rates since the last sample."""

    def __init__(self, summary: Summary):
        self._summary = summary
        self._last = (time.monotonic(), 0, 0, 0, 0)

    def sample(self, gauges: EngineGauges) -> dict[str, Any]:
        """Return a row of the metrics file; rates cover the time since the last call."""
        summary, (then, events, updates, hits, misses) = self._summary, self._last
        now = time.monotonic()
        self._last = (now, summary.events, summary.updates, gauges.hits, gauges.misses)
        passed = max(now - then, 1e-9)
        reads = gauges.hits - hits + gauges.misses - misses
        return {
            "time": round(time.time(), 3),
            "events": summary.events,
            "answers": summary.answers,
            "popular": summary.popular,
            "skipped": summary.skipped.total(),
            "unknown_items": summary.unknown_items,
            "commits": summary.commits,
            "events_per_s": round((summary.events - events) / passed, 1),
            "updates_per_s": round((summary.updates - updates) / passed, 1),
            "queue": gauges.queue,
            "live_users": gauges.cached_users,
            "hit_rate": round((gauges.hits - hits) / reads, 4) if reads else None,
            "latency_ms": percentiles(summary.read_ms),
        }


def format_status(row: dict[str, Any]) -> str:
    """Return a row of metrics as one line for people."""
    latency = row["latency_ms"]
    text = (
        f"{row['events']:,} events, {row['events_per_s']:,.0f}/s; {row['updates_per_s']:,.0f} "
        f"updates/s, queue {row['queue']}"
    )
    if latency:
        text += "; reads p50 {p50:.1f} p95 {p95:.1f} p99 {p99:.1f} ms".format(**latency)
    if row["hit_rate"] is not None:
        text += f", {row['hit_rate']:.0%} hot"
    return text
