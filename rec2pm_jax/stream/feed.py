"""From the lines of a source to an engine: parse, apply, answer, and count what is skipped.

Lines are read ahead of the events that are applied. So a request overtakes events that wait, but not
those of its own user. A place in the input is only named once no event before it waits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rec2pm_jax.stream.driver import Driver
from rec2pm_jax.stream.lines.events import Event, RejectedInput
from rec2pm_jax.stream.lines.output import WriteLine, format_answer
from rec2pm_jax.stream.lines.requests import Request, parse_line
from rec2pm_jax.stream.lines.sources import PartitionedSource, Source

NO_READER = "request without a reader"  # reason of a RejectedInput
MAX_WAITING = 1024  # events: applying them takes a fortieth of a second, which delays a commit


class _Waiting(NamedTuple):
    """An event that was read and not applied, and where it is from: a line's number, or text."""

    place: int | str
    event: Event


class Feed:
    """Feeds the lines of a source to the engine of a driver.

    Attributes:
      source: of the lines.
    """

    def __init__(
        self, driver: Driver, source: Source, write: WriteLine | None, *, in_order: bool = False
    ):
        """Prepare a feed.

        Args:
          write: called with the JSON line of each answer. None: requests among the lines are skipped,
            as their answers have no reader.
          in_order: whether a request waits for all events before it, and not only for its user's.
        """
        self.source = source
        self._driver, self._summary, self._write = driver, driver.summary, write
        self._reads_ahead = write is not None and not in_order
        self._waiting: list[_Waiting] = []
        self._lines_before = 0  # of those being processed
        worker = driver.engine.options.worker
        self._divided = source if isinstance(source, PartitionedSource) else None
        self._worker = worker if worker.count > 1 and self._divided is None else None
        if self._divided is not None:
            self._divided.on_hand_over(self._hand_over)

    @property
    def is_waiting(self) -> bool:
        """Whether there are events that were read and not applied."""
        return bool(self._waiting)

    def positions(self) -> Mapping[str, bytes]:
        """Apply the events that wait, and return how far the source was read: `Source.positions`."""
        self.settle()
        return self.source.positions()

    def settle(self) -> None:
        """Apply the events that wait."""
        self._apply(len(self._waiting))

    def read(self, max_events: int, timeout_s: float) -> bool:
        """Answer the next requests, and apply the next events.

        Args:
          max_events: how many are applied at most, beside those that requests need.
          timeout_s: how long to wait for the first line.

        Returns:
          Whether there were lines, or events that waited.

        Raises:
          UserError: the source cannot be read, or the store cannot keep what was read.
        """
        room = max(max_events, MAX_WAITING) if self._reads_ahead else max_events
        waited, room = self.is_waiting, room - len(self._waiting)
        lines = self.source.read(room, 0 if waited else timeout_s) if room > 0 else []
        if lines:
            self._process(lines)
            self._driver.mark_moved()
        self._apply(max_events)
        return bool(lines) or waited

    def _hand_over(self) -> None:
        """Commit everything and release all users, before another worker writes to some of them."""
        self._driver.commit_all(self.positions)
        self._driver.engine.release_all()

    def _place(self, index: int) -> int | str:
        """Return where line `index` of those being processed is from."""
        if self._divided is not None:
            return self._divided.place(index)
        return self._lines_before + index + 1

    def _process(self, lines: Sequence[bytes]) -> None:
        """Answer the requests of lines in order; events wait."""
        arrived, rules = time.perf_counter(), self._driver.engine.recommender.catalogue.rules
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
                    self._waiting.append(_Waiting(self._place(index), parsed))
                else:
                    self._apply_before(parsed)
                    self._answer(parsed, arrived)
            except RejectedInput as error:
                self._skip(self._place(index), error)
        self._lines_before += len(lines)

    def _apply_before(self, request: Request) -> None:
        """Apply the waiting events that a request must take into account."""
        if not self._reads_ahead:
            self.settle()
            return
        own = [one for one in self._waiting if one.event.user == request.user]
        if own:
            self._waiting = [one for one in self._waiting if one.event.user != request.user]
            self._apply_events(own)

    def _apply(self, count: int) -> None:
        """Apply the first events that wait."""
        if self._waiting:
            first, self._waiting = self._waiting[:count], self._waiting[count:]
            self._apply_events(first)

    def _apply_events(self, waiting: Sequence[_Waiting]) -> None:
        for index, error in self._driver.apply([one.event for one in waiting]):
            self._skip(waiting[index].place, error)

    def _skip(self, place: int | str, error: RejectedInput) -> None:
        self._summary.skip(place if isinstance(place, str) else f"line {place}", error)

    def _answer(self, request: Request, arrived: float) -> None:
        if self._write is None:
            raise RejectedInput(
                NO_READER, "a request, whose answer has no reader here: ask over HTTP"
            )
        self._write(format_answer(self._driver.answer(request)))
        self._summary.read_ms.append((time.perf_counter() - arrived) * 1e3)
