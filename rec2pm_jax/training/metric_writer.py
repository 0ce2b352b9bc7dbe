"""Where metrics go: the protocol of a writer, and the log files that every run has.

A resumed run continues its JSON-lines files exactly. `trackers` holds other writers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

STREAMS = ("train", "validation")

_log = logging.getLogger(__name__)


class MetricWriter(Protocol):
    """What receives the rows of a run: the log files, and each tracker."""

    def write(
        self,
        stream: str,
        step: int,
        values: Mapping[str, float],
        volatile: Mapping[str, float | None] | None = None,
    ) -> None:
        """Append a row to a stream.

        Args:
          stream: one of STREAMS.
          step: number of the step.
          values: {name: value}.
          volatile: values that a rerun does not reproduce, as speeds; None where unknown.
        """

    def close(self) -> None:
        """Write what is buffered, and release files and connections."""


class LogFiles:
    """Writes scalars to `<directory>/<stream>.jsonl` and to TensorBoard event files beside them.

    A row is `{"step": ..., name: value, ...}`. Rows hold only what a rerun reproduces. So the files
    of a killed and resumed run equal those of an undisturbed one byte for byte. Speeds and clock
    times go to TensorBoard alone.
    """

    def __init__(
        self, directory: Path, step: int = 0, positions: Mapping[str, int] | None = None
    ) -> None:
        """Continue after `step`: cut each file at its checkpointed position.

        Warns if a file is shorter than its position, because it was edited or removed.

        Args:
          directory: of the logs; created if missing.
          step: number of the newest checkpoint.
          positions: bytes of each stream's file at this checkpoint; a missing stream is emptied.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._files = {}
        for stream in STREAMS:
            path = directory / f"{stream}.jsonl"
            self._files[stream] = _open_at(path, (positions or {}).get(stream, 0))
        self._board = TensorBoardFile(directory / "tensorboard", step)

    def write(
        self,
        stream: str,
        step: int,
        values: Mapping[str, float],
        volatile: Mapping[str, float | None] | None = None,
    ) -> None:
        """Append a row to a stream.

        Numbers that are not finite become null in the file, as JSON requires.

        Args:
          stream: one of STREAMS.
          step: number of the step.
          values: {name: value}.
          volatile: values that a rerun does not reproduce, as speeds; for TensorBoard only.
        """
        row = {name: _json_number(value) for name, value in values.items()}
        file = self._files[stream]
        file.write((json.dumps({"step": step, **row}) + "\n").encode())
        file.flush()
        for name, value in {**values, **(volatile or {})}.items():
            if value is not None:
                # TensorBoard has no "@" in names.
                self._board.add_scalar(f"{stream}/{name.replace('@', '_')}", value, step)
        self._board.flush()

    def positions(self) -> dict[str, int]:
        """Return the bytes of each stream's file; all of them are safe on disk by then."""
        for file in self._files.values():
            os.fsync(file.fileno())
        return {stream: os.fstat(file.fileno()).st_size for stream, file in self._files.items()}

    def close(self) -> None:
        """Close all files."""
        with contextlib.ExitStack() as stack:  # closes all of them, also after an error
            stack.callback(self._board.close)
            for file in self._files.values():
                stack.callback(file.close)


class TensorBoardFile:
    """An event file of TensorBoard.

    It is written in this thread. `tensorboardX.SummaryWriter` writes in another one, where the error
    of a full disk ends the thread, and its queue then fills up and blocks training.
    """

    def __init__(self, directory: Path, step: int) -> None:
        """Open a new file, whose events replace those of older files after `step`."""
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"), f".{os.getpid()}")
        # Hides events that a killed run wrote after its last checkpoint.
        self._add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add one value of a curve."""
        self._add(Event(step=step, summary=scalar(name, value)))

    def flush(self) -> None:
        """Hand what was added to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)


def _open_at(path: Path, position: int) -> BinaryIO:
    """Open a file to append, cut at `position` bytes."""
    file = path.open("ab")
    size = os.path.getsize(path)
    if size < position:
        _log.warning(
            "%s has %d bytes where the checkpoint expects %d; rows are missing.",
            path,
            size,
            position,
        )
    file.truncate(min(size, position))
    return file


def _json_number(value: float | None) -> float | None:
    """Return the value, or None if it is not finite."""
    return value if value is not None and math.isfinite(value) else None
