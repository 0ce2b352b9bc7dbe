"""From the lines of a source to an engine: parse, apply, answer, and count what is skipped."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rec2pm_jax.stream.driver import Driver
from rec2pm_jax.stream.lines.events import Event, RejectedInput
from rec2pm_jax.stream.lines.output import WriteLine, format_answer
from rec2pm_jax.stream.lines.requests import Request, parse_line
from rec2pm_jax.stream.lines.sources import PartitionedSource, Source

NO_READER = "request without a reader"  # reason of a RejectedInput


class Feed:
    """Feeds the lines of a source to the engine of a driver.

    Attributes:
      source: of the lines.
    """

    def __init__(self, driver: Driver, source: Source, write: WriteLine | None):
        """Prepare a feed.

        Args:
          write: called with the JSON line of each answer. None: requests among the lines are skipped,
            as their answers have no reader.
        """
        self.source = source
        self._driver, self._summary, self._write = driver, driver.summary, write
        self._lines_before = 0  # of those being processed
        worker = driver.engine.options.worker
        self._divided = source if isinstance(source, PartitionedSource) else None
        self._worker = worker if worker.count > 1 and self._divided is None else None
        if self._divided is not None:
            self._divided.on_hand_over(self._hand_over)

    def positions(self) -> Mapping[str, bytes]:
        """Return how far the source was read, see `Source.positions`."""
        return self.source.positions()

    def read(self, max_lines: int, timeout_s: float) -> bool:
        """Apply and answer the next lines.

        Args:
          max_lines: how many at most.
          timeout_s: how long to wait for the first.

        Returns:
          Whether there were lines.

        Raises:
          UserError: the source cannot be read, or the store cannot keep what was read.
        """
        lines = self.source.read(max_lines, timeout_s)
        if lines:
            self._process(lines)
            self._driver.mark_moved()
        return bool(lines)

    def _hand_over(self) -> None:
        """Commit everything and release all users, before another worker writes to some of them."""
        self._driver.commit_all(self.positions)
        self._driver.engine.release_all()

    def _place(self, index: int) -> str:
        """Return where line `index` of those being processed is from."""
        if self._divided is not None:
            return self._divided.place(index)
        return f"line {self._lines_before + index + 1}"

    def _process(self, lines: list[bytes]) -> None:
        """Apply and answer lines in order; events between two requests are applied together."""
        arrived, rules = time.perf_counter(), self._driver.engine.recommender.catalogue.rules
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
        if self._write is None:
            raise RejectedInput(
                NO_READER, "a request, whose answer has no reader here: ask over HTTP"
            )
        self._write(format_answer(self._driver.answer(request)))
        self._summary.read_ms.append((time.perf_counter() - arrived) * 1e3)
