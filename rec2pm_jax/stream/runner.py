"""The loop of a stream: lines in, answers out, updates and commits in between.

Appending an event takes microseconds, updating a memory about a millisecond. So a thread computes
updates in batches: when a batch is full, or when the input pauses. A request needs the updates of its
own user only. While requests come, every other kind of work is done in small steps, so that none of
them delays the next answer for long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from rec2pm_jax.stream.compute.batches import MAX_BATCH
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import Event, RejectedInput
from rec2pm_jax.stream.lines.output import WriteLine, WriteRow, format_answer
from rec2pm_jax.stream.lines.requests import Request, parse_line
from rec2pm_jax.stream.lines.sources import PartitionedSource, Source
from rec2pm_jax.stream.metrics import Meter, Summary
from rec2pm_jax.stream.recommender import Recommender

# Changed users that make a commit begin early. At twice as many, lines wait for the commit.
MAX_CHANGED = 16_384
_RESPONSIVE_S = 1.0  # how long after a request small steps are taken
_WAIT_S = 0.05  # for lines, if there is nothing else to do
_BUSY_WAIT_S = 0.002  # for lines while an update or a commit is under way


class StepSizes(NamedTuple):
    """How much of each kind of work one turn of the loop does at most.

    Attributes:
      lines: read and applied.
      updated: users of a batch of updates.
      encoded: users of a snapshot.
      examined: users that may be released.
    """

    lines: int
    updated: int
    encoded: int
    examined: int


BULK = StepSizes(lines=4096, updated=MAX_BATCH, encoded=8192, examined=4096)
RESPONSIVE = StepSizes(lines=32, updated=2, encoded=64, examined=128)  # while requests come


class Intervals(NamedTuple):
    """How often a stream commits and reports.

    Attributes:
      commit_s: seconds between commits; infinite for a store that ends with the process. After a
        crash at most what was read in this time, and while two commits were written, is read again.
      report_s: seconds between rows of metrics.
    """

    commit_s: float = 1.0
    report_s: float = 1.0


def run_stream(
    engine: Engine,
    source: Source,
    write: WriteLine,
    new_items: Callable[[], Recommender | None] = lambda: None,
    *,
    intervals: Intervals = Intervals(),  # noqa: B008 (immutable)
    report: WriteRow = lambda row: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Summary:
    """Apply events and answer requests until the source is done, or `stopped()`; then commit.

    An answer takes every event of its user before it into account. Lines that cannot be used are
    counted and skipped; empty lines are ignored.

    Args:
      source: of lines, see `lines.events`.
      write: called with the JSON line of each answer.
      new_items: returns a recommender over another item table when there is one, see
        `LiveItems.poll`.
      report: called with rows of metrics.
      stopped: whether to end.

    Returns:
      What the stream did.

    Raises:
      UserError: the store cannot keep what was read, or the source cannot be read.
    """
    return _Loop(engine, source, write, intervals, report).run(stopped, new_items)


class _Loop:
    """One run of a stream."""

    def __init__(
        self,
        engine: Engine,
        source: Source,
        write: WriteLine,
        intervals: Intervals,
        report: WriteRow,
    ):
        self._engine, self._source, self._write = engine, source, write
        self._intervals, self._report = intervals, report
        self._summary = Summary()
        self._meter = Meter(self._summary)
        self._lines_before = 0  # of those being processed
        self._updates_before = engine.update_queue.num_updates
        self._unknown_before = engine.num_unknown_items
        self._last_request = float("-inf")
        worker = engine.options.worker
        self._divided = source if isinstance(source, PartitionedSource) else None
        self._worker = worker if worker.count > 1 and self._divided is None else None
        if self._divided is not None:
            self._divided.on_hand_over(self._hand_over)

    def run(
        self, stopped: Callable[[], bool], new_items: Callable[[], Recommender | None]
    ) -> Summary:
        """See `run_stream`."""
        engine, summary, intervals = self._engine, self._summary, self._intervals
        queue, commits = engine.update_queue, engine.commit_writer
        queue.update_ms.clear()
        began = committed = reported = time.monotonic()
        durable = math.isfinite(intervals.commit_s)
        moved = False  # whether lines were read since the last snapshot
        while not stopped() and not self._source.done:
            if (recommender := new_items()) is not None:
                engine.replace_items(recommender)
            responsive = time.monotonic() - self._last_request < _RESPONSIVE_S
            steps = RESPONSIVE if responsive else BULK
            lines = []
            if not durable or commits.num_changed < 2 * MAX_CHANGED:
                wait_s = _BUSY_WAIT_S if queue.num_running or commits.is_busy else _WAIT_S
                lines = self._source.read(steps.lines, wait_s)
            else:
                time.sleep(_BUSY_WAIT_S)
            if lines:
                self._process(lines)
                moved = True
            spare_time = responsive or not lines
            if queue.num_waiting >= BULK.updated or (spare_time and queue.is_ready):
                queue.start_batch(steps.updated)
            now = time.monotonic()
            full = durable and commits.num_changed >= MAX_CHANGED
            passed = moved and now - committed >= intervals.commit_s
            if (full or passed) and not commits.is_encoding:
                engine.begin_commit(self._source.positions())
                committed, moved = now, False
            if commits.is_busy:
                summary.commits += commits.advance(steps.encoded)
            engine.evict(steps.examined)
            if now - reported >= intervals.report_s:
                self._report_metrics()
                reported = now
        queue.finish_all()
        if durable:
            summary.commits += engine.commit(self._source.positions())
        summary.seconds = time.monotonic() - began
        summary.update_ms.extend(queue.update_ms)
        self._report_metrics()
        return summary

    def _hand_over(self) -> None:
        """Commit everything and release all users, before another worker writes to some of them."""
        self._engine.update_queue.finish_all()
        self._summary.commits += self._engine.commit(self._source.positions())
        self._engine.release_all()

    def _place(self, index: int) -> str:
        """Return where line `index` of those being processed is from."""
        if self._divided is not None:
            return self._divided.place(index)
        return f"line {self._lines_before + index + 1}"

    def _process(self, lines: list[bytes]) -> None:
        """Apply and answer lines in order; events between two requests are applied together."""
        arrived, rules = time.perf_counter(), self._engine.recommender.catalogue.rules
        events: list[Event] = []
        indices: list[int] = []
        for index, line in enumerate(lines):
            if line.isspace():
                continue
            try:
                parsed = parse_line(line, rules)
                if self._divided is not None:
                    self._divided.check_user(index, parsed.user, rules)
                if self._worker is not None and not self._worker.owns(parsed.user):
                    self._summary.other_workers += 1
                elif isinstance(parsed, Event):
                    events.append(parsed)
                    indices.append(index)
                else:
                    self._apply(events, indices)
                    events, indices = [], []
                    self._answer(parsed, arrived)
            except RejectedInput as error:
                self._summary.skip(self._place(index), error)
        self._apply(events, indices)
        self._lines_before += len(lines)

    def _apply(self, events: list[Event], indices: list[int]) -> None:
        """Apply events, given with the indices of their lines."""
        if not events:
            return
        applied, rejected = self._engine.apply(events)
        self._summary.events += applied
        self._summary.unknown_items = self._engine.num_unknown_items - self._unknown_before
        for index, error in rejected:
            self._summary.skip(self._place(indices[index]), error)

    def _answer(self, request: Request, arrived: float) -> None:
        self._last_request = time.monotonic()
        user, k, exclude, asked, filters = request
        answer = self._engine.recommend(user, k, exclude, asked, filters)
        self._summary.unknown_excluded += self._engine.recommender.catalogue.count_unknown(exclude)
        self._summary.answers += 1
        self._summary.popular += answer.popular
        self._summary.fewer += len(answer.items) < answer.wanted
        self._write(format_answer(answer))
        self._summary.read_ms.append((time.perf_counter() - arrived) * 1e3)

    def _report_metrics(self) -> None:
        self._summary.updates = self._engine.update_queue.num_updates - self._updates_before
        self._report(self._meter.sample(self._engine.gauges()))
