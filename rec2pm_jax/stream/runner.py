"""The loop of a stream: lines in, answers out; a `Driver` makes updates and commits in between."""

from __future__ import annotations

import time
from collections.abc import Callable

from rec2pm_jax.stream.driver import BUSY_WAIT_S, Driver, Intervals
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import Event, RejectedInput
from rec2pm_jax.stream.lines.output import WriteLine, WriteRow, format_answer
from rec2pm_jax.stream.lines.requests import Request, parse_line
from rec2pm_jax.stream.lines.sources import PartitionedSource, Source
from rec2pm_jax.stream.metrics import Summary
from rec2pm_jax.stream.recommender import Recommender


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
    return _Loop(Driver(engine, intervals, report), source, write).run(stopped, new_items)


class _Loop:
    """One run of a stream."""

    def __init__(self, driver: Driver, source: Source, write: WriteLine):
        self._driver, self._engine, self._summary = driver, driver.engine, driver.summary
        self._source, self._write = source, write
        self._lines_before = 0  # of those being processed
        worker = driver.engine.options.worker
        self._divided = source if isinstance(source, PartitionedSource) else None
        self._worker = worker if worker.count > 1 and self._divided is None else None
        if self._divided is not None:
            self._divided.on_hand_over(self._hand_over)

    def run(
        self, stopped: Callable[[], bool], new_items: Callable[[], Recommender | None]
    ) -> Summary:
        """See `run_stream`."""
        driver = self._driver
        while not stopped() and not self._source.done:
            if (recommender := new_items()) is not None:
                self._engine.replace_items(recommender)
            lines = []
            if driver.accepts_input:
                lines = self._source.read(driver.steps.lines, driver.wait_s)
            else:
                time.sleep(BUSY_WAIT_S)
            if lines:
                self._process(lines)
                driver.mark_moved()
            driver.keep_up(not lines, self._source.positions)
        return driver.finish(self._source.positions)

    def _hand_over(self) -> None:
        """Commit everything and release all users, before another worker writes to some of them."""
        self._driver.commit_all(self._source.positions)
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
        if events:
            for index, error in self._driver.apply(events):
                self._summary.skip(self._place(indices[index]), error)

    def _answer(self, request: Request, arrived: float) -> None:
        self._write(format_answer(self._driver.answer(request)))
        self._summary.read_ms.append((time.perf_counter() - arrived) * 1e3)
