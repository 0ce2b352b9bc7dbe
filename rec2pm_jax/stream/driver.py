"""What drives an engine: events and requests go in, and updates and commits are made in between.

Appending an event takes microseconds, updating a memory about a millisecond. So a thread computes
updates in batches: when a batch is full, or when the input pauses. A request needs the updates of its
own user only. While requests come, every other kind of work is done in small steps, so that none of
them delays the next answer for long.

`runner.py` feeds a driver with lines, `serve/engine_thread.py` with what comes over HTTP.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rec2pm_jax.stream.compute.batches import MAX_BATCH
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import Event, RejectedInput
from rec2pm_jax.stream.lines.output import WriteRow
from rec2pm_jax.stream.lines.requests import Request
from rec2pm_jax.stream.metrics import Meter, Summary
from rec2pm_jax.stream.outcomes import Answer, Rejections

# Changed users that make a commit begin early. At twice as many, input waits for the commit.
MAX_CHANGED = 16_384
_RESPONSIVE_S = 1.0  # how long after a request small steps are taken
_WAIT_S = 0.05  # for input, if there is nothing else to do
BUSY_WAIT_S = 0.002  # for input while an update or a commit is under way


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


BULK = StepSizes(lines=4096, updated=2 * MAX_BATCH, encoded=8192, examined=4096)
RESPONSIVE = StepSizes(lines=32, updated=2, encoded=64, examined=128)  # while requests come


class Intervals(NamedTuple):
    """How often an engine's changes are committed and reported.

    Attributes:
      commit_s: seconds between commits, twice as many where events wait; infinite for a store that ends
        with the process. After a crash at most what was read in this time, and while two commits were
        written, is read again.
      report_s: seconds between rows of metrics.
    """

    commit_s: float = 1.0
    report_s: float = 1.0


class Turn(NamedTuple):
    """What the upkeep of one turn did.

    Attributes:
      began_commit: whether a snapshot was taken, of everything applied so far.
      finished_commits: how many snapshots are in the store since; they get there in order.
    """

    began_commit: bool
    finished_commits: int


class Driver:
    """One engine, what it did, and the work that it has to do between events and requests.

    Attributes:
      engine: as given.
      summary: what was done so far.
      is_durable: whether changes are committed.
    """

    def __init__(self, engine: Engine, intervals: Intervals, report: WriteRow = lambda row: None):
        """Begin now.

        Args:
          report: called with rows of metrics.
        """
        self.engine, self.summary = engine, Summary()
        self.is_durable = math.isfinite(intervals.commit_s)
        self._intervals, self._report = intervals, report
        self._meter = Meter(self.summary)
        self._updates_before = engine.update_queue.num_updates
        self._unknown_before = engine.num_unknown_items
        self._last_request = float("-inf")
        self._began = self._committed = self._reported = time.monotonic()
        self._moved = False  # whether anything was applied since the last snapshot
        engine.update_queue.update_ms.clear()

    # --- input ---

    @property
    def is_responsive(self) -> bool:
        """Whether requests came lately, so that steps are small."""
        return time.monotonic() - self._last_request < _RESPONSIVE_S

    @property
    def steps(self) -> StepSizes:
        """How much one turn does."""
        return RESPONSIVE if self.is_responsive else BULK

    @property
    def accepts_input(self) -> bool:
        """Whether there is room for changed users; otherwise commits have to catch up."""
        return not self.is_durable or self.engine.commit_writer.num_changed < 2 * MAX_CHANGED

    @property
    def wait_s(self) -> float:
        """How many seconds a turn may wait for input."""
        busy = self.engine.update_queue.num_running or self.engine.commit_writer.is_busy
        return BUSY_WAIT_S if busy else _WAIT_S

    def apply(self, events: Sequence[Event]) -> Rejections:
        """Apply events in order, and return the rejected ones; the caller counts those."""
        self._moved = True
        applied, rejected = self.engine.apply(events)
        self.summary.events += applied
        self.summary.unknown_items = self.engine.num_unknown_items - self._unknown_before
        return rejected

    def answer(self, request: Request) -> Answer:
        """Answer a request, with every event before it taken into account.

        Raises:
          RejectedInput, UserError: as `Engine.recommend`.
        """
        self._last_request = time.monotonic()
        answer = self.engine.recommend(*request)
        self._count(request, answer)
        return answer

    def answer_all(
        self, requests: Sequence[Request]
    ) -> Iterator[tuple[int, Answer | RejectedInput]]:
        """Answer requests that wait at the same time; yields as `Engine.recommend_all`.

        Raises:
          UserError: as `answer`.
        """
        self._last_request = time.monotonic()
        for number, answer in self.engine.recommend_all(requests):
            if isinstance(answer, Answer):
                self._count(requests[number], answer)
            yield number, answer

    def _count(self, request: Request, answer: Answer) -> None:
        summary, catalogue = self.summary, self.engine.recommender.catalogue
        summary.unknown_excluded += catalogue.count_unknown(request.exclude)
        summary.answers += 1
        summary.popular += answer.popular
        summary.fewer += len(answer.items) < answer.wanted

    # --- between input ---

    def mark_moved(self) -> None:
        """Note that the input has moved on, so that its new position is committed."""
        self._moved = True

    def keep_up(
        self,
        is_idle: bool,
        positions: Callable[[], Mapping[str, bytes]],
        *,
        input_waits: bool = False,
    ) -> Turn:
        """Do a turn's share of updates, commits, evictions and reports.

        Args:
          is_idle: whether there was no input.
          positions: returns the place in the input of everything applied so far.
          input_waits: whether `positions` has to apply events first. Then a commit that is due waits,
            for as long again at most.

        Raises:
          UserError: the store cannot keep what was read.
        """
        engine, steps, now = self.engine, self.steps, time.monotonic()
        queue, commits = engine.update_queue, engine.commit_writer
        spare_time = is_idle or self.is_responsive
        if queue.num_waiting >= BULK.updated or (spare_time and queue.is_ready):
            queue.start_batch(steps.updated)
        full = self.is_durable and commits.num_changed >= MAX_CHANGED
        interval = self._intervals.commit_s * (2 if input_waits else 1)
        passed = self._moved and now - self._committed >= interval
        began_commit = (full or passed) and not commits.is_encoding
        if began_commit:
            engine.begin_commit(positions())
            self._committed, self._moved = now, False
        finished = int(commits.is_busy and commits.advance(steps.encoded))
        self.summary.commits += finished
        engine.evict(steps.examined)
        if now - self._reported >= self._intervals.report_s:
            self._report_metrics()
            self._reported = now
        return Turn(began_commit, finished)

    def commit_all(self, positions: Callable[[], Mapping[str, bytes]]) -> None:
        """Compute all updates and commit everything.

        Args:
          positions: as for `keep_up`.

        Raises:
          UserError: as `keep_up`.
        """
        self.engine.update_queue.finish_all()
        if self.is_durable:
            self.summary.commits += self.engine.commit(positions())

    def finish(self, positions: Callable[[], Mapping[str, bytes]]) -> Summary:
        """Compute all updates and commit everything; return what was done.

        Args:
          positions: as for `keep_up`.

        Raises:
          UserError: as `keep_up`.
        """
        self.commit_all(positions)
        self.summary.seconds = time.monotonic() - self._began
        self.summary.update_ms.extend(self.engine.update_queue.update_ms)
        self._report_metrics()
        return self.summary

    def replace_engine(self, engine: Engine) -> None:
        """Go on with another engine, after `commit_all`; totals continue."""
        self._updates_before = engine.update_queue.num_updates - self.count_updates()
        self._unknown_before = engine.num_unknown_items - self.summary.unknown_items
        self.engine = engine

    def count_updates(self) -> int:
        """Return how many memory updates were computed since the start."""
        return self.engine.update_queue.num_updates - self._updates_before

    def _report_metrics(self) -> None:
        self.summary.updates = self.count_updates()
        self._report(self._meter.sample(self.engine.gauges()))
