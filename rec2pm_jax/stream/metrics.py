"""What a stream did, in all and in the last seconds."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter, deque
from typing import Any

import numpy as np

from rec2pm_jax.stream.events import UNKNOWN_ITEM, Refused

_EXAMPLES = 3  # lines that the summary quotes for each reason to skip
_LATENCIES = 10_000  # newest timings kept


@dataclasses.dataclass
class Summary:
    """What a stream did.

    Attributes:
      events: applied. answers: written. updates: memory updates folded. commits: finished.
      skipped: lines left out, by reason.
      examples: for each reason the first few, with line numbers from 1.
      unknown_excluded: unknown items in the `exclude` of requests, which are answered all the same.
      others: events and requests of users of other workers.
      seconds: from the first line to the last.
      update_ms: for each batch of updates, milliseconds per update.
      read_ms: for each request, milliseconds from when its line was there until it was answered. Of
        both only the newest are kept.
    """

    events: int = 0
    answers: int = 0
    updates: int = 0
    commits: int = 0
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    unknown_excluded: int = 0
    others: int = 0
    seconds: float = 0.0
    update_ms: deque[float] = dataclasses.field(default_factory=lambda: deque(maxlen=_LATENCIES))
    read_ms: deque[float] = dataclasses.field(default_factory=lambda: deque(maxlen=_LATENCIES))

    def skip(self, number: int, why: Refused) -> None:
        """Counts line `number`, which cannot be used."""
        self.skipped[why.reason] += 1
        examples = self.examples.setdefault(why.reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(f"line {number}: {why}")

    def lines(self) -> list[str]:
        """The report, for people."""
        report = []
        if self.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
            report.append(f"skipped {self.skipped.total()} lines: {reasons}")
        report += [f"  {example}" for examples in self.examples.values() for example in examples]
        if self.unknown_excluded:
            report.append(f"ignored {self.unknown_excluded} {UNKNOWN_ITEM}s in exclude lists")
        if self.others:
            report.append(f"left {self.others} lines to other workers")
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


def percentiles(milliseconds) -> dict[str, float] | None:
    """{"p50", "p95", "p99"}, rounded to the microsecond; None without values."""
    if not len(milliseconds):
        return None
    found = np.percentile(np.asarray(milliseconds), (50, 95, 99))
    return dict(zip(("p50", "p95", "p99"), (round(float(x), 3) for x in found), strict=True))


class Meter:
    """Rates since the last look at them."""

    def __init__(self, summary: Summary):
        self._summary = summary
        self._before = (time.monotonic(), 0, 0, 0, 0)

    def look(self, sessions, queue: int, live: int) -> dict[str, Any]:
        """The row of the metrics file.

        Args:
          sessions: the hot cache. queue: users with segments due. live: users in the process.
        """
        summary, (then, events, updates, hits, misses) = self._summary, self._before
        now = time.monotonic()
        self._before = (now, summary.events, summary.updates, sessions.hits, sessions.misses)
        passed = max(now - then, 1e-9)
        reads = sessions.hits - hits + sessions.misses - misses
        return {
            "time": round(time.time(), 3),
            "events": summary.events,
            "answers": summary.answers,
            "skipped": summary.skipped.total(),
            "commits": summary.commits,
            "events_per_s": round((summary.events - events) / passed, 1),
            "updates_per_s": round((summary.updates - updates) / passed, 1),
            "queue": queue,
            "live_users": live,
            "hit_rate": round((sessions.hits - hits) / reads, 4) if reads else None,
            "latency_ms": percentiles(summary.read_ms),
        }


def live_line(row: dict[str, Any]) -> str:
    """A row of metrics on one line, for people."""
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
