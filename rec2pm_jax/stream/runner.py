"""The loop of a stream: lines in, answers out; a `Driver` makes updates and commits in between."""

from __future__ import annotations

import time
from collections.abc import Callable

from rec2pm_jax.stream.driver import BUSY_WAIT_S, Driver, Intervals
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.feed import Feed
from rec2pm_jax.stream.lines.output import WriteLine, WriteRow
from rec2pm_jax.stream.lines.sources import Source
from rec2pm_jax.stream.metrics import Summary
from rec2pm_jax.stream.recommender import Recommender


def run_stream(
    engine: Engine,
    source: Source,
    write: WriteLine,
    new_items: Callable[[], Recommender | None] = lambda: None,
    *,
    in_order: bool = False,
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
      in_order: as for `Feed`.
      report: called with rows of metrics.
      stopped: whether to end.

    Returns:
      What the stream did.

    Raises:
      UserError: the store cannot keep what was read, or the source cannot be read.
    """
    driver = Driver(engine, intervals, report)
    feed = Feed(driver, source, write, in_order=in_order)
    while not stopped() and not source.done:
        if (recommender := new_items()) is not None:
            engine.replace_items(recommender)
        read = False
        if driver.accepts_input:
            read = feed.read(driver.steps.lines, driver.wait_s)
        else:
            time.sleep(BUSY_WAIT_S)
        driver.keep_up(not read, feed.positions, input_waits=feed.is_waiting)
    feed.settle()
    return driver.finish(feed.positions)
