"""The loop of a stream: lines in, answers out, memories folded and committed in between.

Events are appended as they are read, which takes microseconds; folding, which takes a millisecond
per segment, is done by another thread when the input pauses or a batch is full. A request needs only
its own user's segments folded. While requests come, all that stands in the way of the next one is done
in small pieces.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.stream.batches import MAX_BATCH
from rec2pm_jax.stream.engine import Answer, Engine
from rec2pm_jax.stream.events import Event, Refused, Request, parse_line
from rec2pm_jax.stream.metrics import Meter, Summary
from rec2pm_jax.stream.sources import Source

MAX_CHANGED = 16_384  # users: a commit begins early, and at twice as many lines wait for it
MICRO_BATCH = 4096  # lines taken at a time
READ_LINES = 32  # the same while requests come,
READ_FOLDS = 2  # and users folded at a time
_READS_S = 1.0  # how long after a request the next one is expected
_ENCODED = 8192  # users of a snapshot encoded at a time,
_READ_ENCODED = 64  # and while requests come
_TRIMMED = 4096  # users looked at at a time to let them go,
_READ_TRIMMED = 128  # and while requests come
_WAIT_S = 0.05  # for lines, when there is nothing else to do,
_TICK_S = 0.002  # and while a commit is on its way


class Pace(NamedTuple):
    """Attributes:
    commit_s: seconds between commits; infinite for a store that ends with the process. After a crash
      at most what was read in this time, and while two commits were written, is read again.
    report_s: seconds between calls of `report` with a row of metrics.
    """

    commit_s: float = 1.0
    report_s: float = 1.0


def answer_line(answer: Answer) -> str:
    """One JSON line, without the line break."""
    items = [{"item": r.item, "title": r.title, "score": r.score} for r in answer.items]
    fields = {"user": answer.user, "items": items, "events": answer.events}
    return json.dumps(fields | {"updates": answer.updates}, ensure_ascii=False)


def run_stream(
    engine: Engine,
    source: Source,
    write: Callable[[str], None],
    *,
    pace: Pace = Pace(),  # noqa: B008 (immutable)
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Summary:
    """Reads events and requests (see `events`), and calls `write` with the line of each answer.

    An answer takes every event of its user before it into account. Lines that cannot be used are
    counted and skipped; empty lines are ignored. Ends with a commit, when the source is done or
    `stopped()`.

    Raises:
      UserError: the store cannot keep what was read, or the source cannot be read.
    """
    return _Run(engine, source, write, pace, report).until(stopped)


class _Run:
    def __init__(self, engine: Engine, source: Source, write, pace: Pace, report):
        self.engine, self.source, self.write = engine, source, write
        self.pace, self.report = pace, report
        self.summary = Summary()
        self.meter = Meter(self.summary)
        self.number = 0
        self.folded_before = engine.folding.folded
        self.last_read = float("-inf")
        index, workers = map(int, engine.options.worker.split("/"))
        self.worker = None if workers == 1 else (index, workers)

    def until(self, stopped: Callable[[], bool]) -> Summary:
        engine, summary, pace = self.engine, self.summary, self.pace
        engine.folding.update_ms.clear()
        began = committed = reported = time.monotonic()
        lasting = math.isfinite(pace.commit_s)
        dirty = False  # whether the source has moved since the last snapshot
        while not stopped() and not self.source.done:
            reads = time.monotonic() - self.last_read < _READS_S
            wait = _TICK_S if engine.folding.away or engine.commits.busy else _WAIT_S
            lines = []
            if not lasting or engine.commits.changed < 2 * MAX_CHANGED:
                lines = self.source.read(READ_LINES if reads else MICRO_BATCH, wait)
            else:
                time.sleep(_TICK_S)
            if lines:
                self.take(lines)
                dirty = True
            self.fold(reads, idle=not lines)
            now = time.monotonic()
            full = lasting and engine.commits.changed >= MAX_CHANGED
            if not engine.commits.encoding and (
                full or (dirty and now - committed >= pace.commit_s)
            ):
                engine.snapshot(self.source.marks())
                committed, dirty = now, False
            if engine.commits.busy:
                summary.commits += engine.commits.advance(_READ_ENCODED if reads else _ENCODED)
            engine.trim(_READ_TRIMMED if reads else _TRIMMED)
            if now - reported >= pace.report_s:
                self.look()
                reported = now
        engine.fold()
        if lasting:
            summary.commits += engine.commit(self.source.marks())
        summary.seconds = time.monotonic() - began
        summary.update_ms.extend(engine.folding.update_ms)
        self.look()
        return summary

    def look(self) -> None:
        folding = self.engine.folding
        self.summary.updates = folding.folded - self.folded_before
        queue = folding.due + folding.away
        self.report(self.meter.look(self.engine.sessions, queue, self.engine.live_users))

    def take(self, lines: list[bytes]) -> None:
        """Applies and answers lines in order."""
        arrived = time.perf_counter()
        held: list[Event] = []
        numbers: list[int] = []
        for line in lines:
            self.number += 1
            if line.isspace():
                continue
            try:
                parsed = parse_line(line)
                if self.worker is not None and not self.is_mine(parsed.user):
                    self.summary.others += 1
                elif isinstance(parsed, Event):
                    held.append(parsed)
                    numbers.append(self.number)
                else:
                    self.apply(held, numbers)
                    held, numbers = [], []
                    self.answer(parsed, arrived)
            except Refused as error:
                self.summary.skip(self.number, error)
        self.apply(held, numbers)

    def is_mine(self, user: str) -> bool:
        index, workers = self.worker
        return int(hash_strings([user])[0]) % workers == index

    def apply(self, events: list[Event], numbers: list[int]) -> None:
        if not events:
            return
        applied, refused = self.engine.apply(events)
        self.summary.events += applied
        for index, why in refused:
            self.summary.skip(numbers[index], why)

    def fold(self, reads: bool, idle: bool) -> None:
        """Has segments folded beside the stream: full batches, or what there is when there is time."""
        folding = self.engine.folding
        if folding.due >= MAX_BATCH:
            folding.begin(READ_FOLDS if reads else MAX_BATCH)
        elif (reads or idle) and folding.ready:
            folding.begin(READ_FOLDS if reads else MAX_BATCH)

    def answer(self, request: Request, arrived: float) -> None:
        self.last_read = time.monotonic()
        found = self.engine.recommend(request.user, request.k, request.exclude, request.time)
        self.summary.unknown_excluded += self.engine.recommender.catalogue.unknown(request.exclude)
        self.summary.answers += 1
        self.write(answer_line(found))
        self.summary.read_ms.append((time.perf_counter() - arrived) * 1e3)
