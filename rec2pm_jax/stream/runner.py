"""A stream of lines: events are applied in micro-batches, requests are answered in order."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

from rec2pm_jax.stream.engine import Answer, Engine
from rec2pm_jax.stream.events import UNKNOWN_ITEM, Event, Refused, Request, parse_line

MICRO_BATCH = 4096  # events held back at most; a request applies them first
_EXAMPLES = 3  # lines that the summary quotes for each reason to skip
_LATENCIES = 10_000  # newest timings kept for the medians


@dataclasses.dataclass
class Summary:
    """What a stream did.

    Attributes:
      events: applied. answers: written. updates: memory updates folded.
      skipped: lines left out, by reason.
      examples: for each reason the first few, with line numbers from 1.
      unknown_excluded: unknown items in the `exclude` of requests, which are answered all the same.
      seconds: from the first line to the last.
      update_ms: for each micro-batch that updated memories, milliseconds per update, the handling of
        its raw events included.
      read_ms: for each request, milliseconds to answer it. Of both only the newest are kept.
    """

    events: int = 0
    answers: int = 0
    updates: int = 0
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    unknown_excluded: int = 0
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


def answer_line(answer: Answer) -> str:
    """One JSON line, without the line break."""
    items = [{"item": r.item, "title": r.title, "score": r.score} for r in answer.items]
    fields = {"user": answer.user, "items": items, "events": answer.events}
    return json.dumps(fields | {"updates": answer.updates}, ensure_ascii=False)


def run_stream(engine: Engine, lines: Iterable[bytes], write: Callable[[str], None]) -> Summary:
    """Reads events and requests (see `events`), and calls `write` with the line of each answer.

    An answer takes every event before it into account. Lines that cannot be used are counted and
    skipped; empty lines are ignored.
    """
    summary = Summary()
    held: list[tuple[int, Event]] = []  # with line numbers

    def apply() -> None:
        if not held:
            return
        began = time.perf_counter()
        done = engine.ingest([event for _, event in held])
        if done.updates:
            summary.update_ms.append((time.perf_counter() - began) * 1e3 / done.updates)
        summary.events += done.events
        summary.updates += done.updates
        for index, why in done.refused:
            summary.skip(held[index][0], why)
        held.clear()

    def answer(request: Request) -> None:
        began = time.perf_counter()
        [found] = engine.recommend([request.user], request.k, request.exclude, request.time)
        summary.read_ms.append((time.perf_counter() - began) * 1e3)
        summary.unknown_excluded += engine.recommender.catalogue.unknown(request.exclude)
        summary.answers += 1
        write(answer_line(found))

    began = time.perf_counter()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            parsed = parse_line(line)
            if isinstance(parsed, Event):
                held.append((number, parsed))
                if len(held) == MICRO_BATCH:
                    apply()
            else:
                apply()
                answer(parsed)
        except Refused as error:
            summary.skip(number, error)
    apply()
    summary.seconds = time.perf_counter() - began
    return summary
