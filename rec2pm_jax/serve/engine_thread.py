"""The thread that owns the engine: work of all connections goes in, results come back as futures.

Handlers of HTTP put work into a queue and await a future. The thread takes what has arrived, in order:
events between two requests are applied together, whoever sent them. Then it does a turn's share of
updates and commits. A result that has to be durable waits until its commit is in the store. Lines of a
source, such as a Kafka topic, are read in between.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve.journal import Journal
from rec2pm_jax.serve.work import (
    Acknowledgements,
    Applied,
    CallWork,
    CommitFailed,
    EventsWork,
    RequestWork,
    Stopped,
    Work,
    send,
)
from rec2pm_jax.stream.driver import BUSY_WAIT_S, Driver
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.feed import Feed
from rec2pm_jax.stream.lines.events import DUPLICATE, Event, RejectedInput
from rec2pm_jax.stream.lines.requests import Request
from rec2pm_jax.stream.outcomes import Answer, Rejections
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import Store

_log = logging.getLogger(__name__)


class EngineThread:
    """Runs a `Driver` in a thread.

    Attributes:
      journal: as given.
      driver: that runs now; only the thread may call it, others may read its totals.
      failure: why the thread ended by itself, or None.
      turned_at: `time.monotonic()` of the last turn, for a health check.
    """

    def __init__(
        self,
        driver: Driver,
        new_items: Callable[[], Recommender | None] = lambda: None,
        *,
        journal: Journal | None = None,
        waits_for_commit: bool = True,
        feed: Feed | None = None,
    ):
        """Prepare a thread; `start` starts it.

        Args:
          new_items: as for `runner.run_stream`.
          journal: gets the events that were applied; None for none.
          waits_for_commit: whether events are acknowledged after their commit, or once applied.
          feed: of a source whose lines are read beside what comes over HTTP; None for none.
        """
        self.driver, self.turned_at = driver, time.monotonic()
        self.failure: str | None = None
        self.journal, self._new_items = journal, new_items
        self._feed, self._was_fed = feed, False
        self._waits_for_commit = waits_for_commit and driver.is_durable
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._stopping, self._ended = threading.Event(), False
        self._batch: list[Work] = []
        self._acknowledgements = Acknowledgements()
        self._refusing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._on_end: Callable[[], None] = lambda: None

    def start(self, on_end: Callable[[], None] = lambda: None) -> None:
        """Start the thread.

        Args:
          on_end: called by the thread if it ends by itself, because of an error.
        """
        self._on_end = on_end
        self._thread.start()

    def stop(self) -> None:
        """Do all work that is queued, commit, and end the thread.

        Raises:
          UserError: the store could not keep what was applied.
        """
        self._stopping.set()
        self._queue.put(None)
        self._thread.join()
        if self.failure is not None:
            raise UserError(self.failure)

    # --- called in the event loop ---

    async def apply(self, events: list[Event]) -> Applied:
        """Apply events; return when they are committed, or at once without `waits_for_commit`."""
        return await self._submit(EventsWork(events, _new_future()))

    async def answer(self, request: Request) -> Answer:
        """Answer a request.

        Raises:
          RejectedInput, UserError: as `Engine.recommend`.
        """
        return await self._submit(RequestWork(request, _new_future()))

    async def call(self, function: Callable[[Driver], Any]) -> Any:
        """Return `function(driver)`, which the thread calls between other work."""
        return await self._submit(CallWork(function, _new_future()))

    async def _submit(self, work: Work) -> Any:
        self._queue.put(work)
        if self._ended:  # before it saw the work, perhaps
            self._refuse_queued()
        return await work.future

    def switch(
        self, engine: Engine, new_items: Callable[[], Recommender | None]
    ) -> tuple[Store, int]:
        """Change to another engine; to be called by the thread, see `call`.

        The engine before commits, and its acknowledgements are sent. Then the new engine reads from the
        journal what it is behind.

        Returns:
          (the store of the engine before, how many events were read from the journal).

        Raises:
          UserError: the new engine's store could not keep it; then the old engine stays.
        """
        driver, before = self.driver, self.driver.engine
        try:
            driver.commit_all(self._positions)
        except UserError as error:
            raise CommitFailed(str(error)) from error
        self._acknowledgements.send_all()
        replayed = 0 if self.journal is None else self.journal.replay(engine)
        driver.replace_engine(engine)
        self._new_items = new_items
        return before.store, replayed

    # --- the thread ---

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() or not self._queue.empty():
                self._turn()
            self.driver.finish(self._positions)
            self._acknowledgements.send_all()
        except BaseException as error:  # whatever it was, no request may wait for ever
            if not isinstance(error, UserError):
                _log.exception("the engine's thread ends")
            self.failure = str(error) or type(error).__name__
        self._ended = True
        self._refuse_queued()
        if self.failure is not None:
            self._on_end()

    def _positions(self) -> Mapping[str, bytes]:
        positions = {} if self.journal is None else dict(self.journal.positions())
        if self._feed is not None:
            positions |= self._feed.positions()
        return positions

    def _turn(self) -> None:
        driver = self.driver
        self.turned_at = time.monotonic()
        if (recommender := self._new_items()) is not None:
            driver.engine.replace_items(recommender)
        batch: list[Work] = []
        if driver.accepts_input:
            batch = self._take(driver.steps.lines, 0.0 if self._was_fed else driver.wait_s)
            self._batch = batch  # told about an error that ends the thread
            self._process(batch)
            self._batch = []
            self._was_fed = self._read_feed()
        else:
            time.sleep(BUSY_WAIT_S)
        began, finished = driver.keep_up(not batch and not self._was_fed, self._positions)
        if finished:
            self._acknowledgements.send_oldest()
        if began:
            self._acknowledgements.take_snapshot()

    def _read_feed(self) -> bool:
        """Apply the next lines of the source, if there is one; return whether there were any."""
        if self._feed is None or self._feed.source.done:
            return False
        return self._feed.read(self.driver.steps.lines, timeout_s=0.0)

    def _take(self, most: int, wait_s: float) -> list[Work]:
        """Return what has arrived, at most `most` items; wait for the first one."""
        batch: list[Work] = []
        try:
            work = self._queue.get(timeout=wait_s)
            while True:
                if work is not None:
                    batch.append(work)
                if len(batch) >= most:
                    break
                work = self._queue.get_nowait()
        except queue.Empty:
            pass
        return batch

    def _process(self, batch: list[Work]) -> None:
        """Do work in order; neighbours of one kind, events or requests, are done together."""
        for kind, group in itertools.groupby(batch, key=type):
            works: Any = list(group)
            if kind is EventsWork:
                self._apply(works)
            elif kind is RequestWork:
                self._answer(works)
            else:
                for work in works:
                    self._call(work)

    def _answer(self, works: list[RequestWork]) -> None:
        """Answer requests that wait at the same time, each as soon as its answer is known."""
        began, waiting = time.perf_counter(), dict(enumerate(works))
        try:
            for number, answer in self.driver.answer_all([work.request for work in works]):
                future = waiting.pop(number).future
                if isinstance(answer, RejectedInput):
                    send(future, error=answer)
                else:
                    self.driver.summary.read_ms.append((time.perf_counter() - began) * 1e3)
                    send(future, answer)
        except Exception as error:
            for work in waiting.values():
                send(work.future, error=error)

    def _call(self, work: CallWork) -> None:
        try:
            result = work.function(self.driver)
        except CommitFailed:
            raise
        except Exception as error:
            send(work.future, error=error)
        else:
            send(work.future, result)

    def _apply(self, works: list[EventsWork]) -> None:
        """Apply the events of several bodies as one list."""
        if not works:
            return
        events = [event for work in works for event in work.events]
        owners = [(n, place) for n, work in enumerate(works) for place in range(len(work.events))]
        rejected: list[Rejections] = [[] for _ in works]
        refused_at = set[int]()
        for index, error in self.driver.apply(events):
            self.driver.summary.skipped[error.reason] += 1
            n, place = owners[index]
            rejected[n].append((place, error))
            refused_at.add(index)
        if self.journal is not None:
            self.journal.append([e for at, e in enumerate(events) if at not in refused_at])
        for work, refused in zip(works, rejected, strict=True):
            accepted = len(work.events) - len(refused)
            # What it duplicates may not be committed yet.
            needs_commit = accepted or any(error.reason == DUPLICATE for _, error in refused)
            if needs_commit and self._waits_for_commit:
                self._acknowledgements.add(work, Applied(accepted, refused, True))
            else:
                send(work.future, Applied(accepted, refused, not needs_commit))

    def _refuse_queued(self) -> None:
        """Refuse all work that still waits; called by both threads at the end."""
        with self._refusing:
            waiting = [*self._batch, *self._acknowledgements.give_up()]
        while True:
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                break
            if work is not None:
                waiting.append(work)
        for work in waiting:
            send(work.future, error=Stopped(self.failure or "The service is ending."))


def _new_future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()
