"""The journal: every event that was applied, as lines that `launch.stream` and `launch.prepare` read.

Events are written before the commit that holds their effect, and a commit names its place in the
journal. So a store that is behind, such as one rebuilt for a new checkpoint, reads the rest from the
journal, and each event counts once.

The directory should hold what the prepared dataset does not hold: move files away once they were
appended to the dataset. Each start and each hour begins a new file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rec2pm_jax.errors import UserError
from rec2pm_jax.lock import alone_in
from rec2pm_jax.os_errors import write_error
from rec2pm_jax.stream.driver import Intervals
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import Event
from rec2pm_jax.stream.lines.positions import HEAD_BYTES, encode_position, position_key
from rec2pm_jax.stream.lines.sources import FileSource
from rec2pm_jax.stream.options import Worker
from rec2pm_jax.stream.runner import run_stream
from rec2pm_jax.stream.stores.base import NOTHING, Store

FILE_S = 3600.0  # a file is this long; the time of its first event is in its name
_NAME = re.compile(r"events-\d{8}T\d{6}Z-\d{4}")


class Journal:
    """Appends events to files in a directory; one process at a time.

    `append` and `positions` are called by the thread of the engine, `sync` by any thread.

    Attributes:
      directory: of the files of this worker.
    """

    def __init__(self, directory: str | Path, worker: Worker = Worker(), file_s: float = FILE_S):  # noqa: B008
        """Open the directory, or create it.

        Args:
          worker: each of several has a directory inside.
          file_s: seconds until a new file is begun.

        Raises:
          UserError: it cannot be written, or another process writes there.
        """
        self.directory = Path(directory)
        if worker.count > 1:
            self.directory /= f"{worker.index}-of-{worker.count}"
        self._file_s = file_s
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(alone_in(self.directory))
        self._files: list[_JournalFile] = []
        self._earlier = self._list()  # files of earlier processes

    def append(self, events: Sequence[Event]) -> None:
        """Write events, in the order in which they were applied.

        Raises:
          UserError: they cannot be written.
        """
        if not events:
            return
        if not self._files or time.monotonic() - self._files[-1].began > self._file_s:
            for file in self._files:
                file.close()
            self._files.append(_JournalFile(self._new_path()))
        self._files[-1].write(b"".join(map(format_event, events)))

    def positions(self) -> Mapping[str, bytes]:
        """Return the place behind the last event written, as metadata of the next commit.

        Files that have ended are named once, as commits reach the store in order.
        """
        found = {file.key: file.position() for file in self._files}
        self._files = self._files[-1:]
        return found

    def sync(self) -> None:
        """Make what was written survive a power cut.

        Raises:
          UserError: the disk refuses.
        """
        for file in list(self._files):
            file.sync()

    def replay(self, engine: Engine) -> int:
        """Apply all events that an engine's store is behind, and commit them; return how many.

        Half a line at the end of a file of an earlier process was never acknowledged and is removed.

        Raises:
          UserError: a file cannot be read, or the store cannot keep what it holds.
        """
        count = 0
        for path in self._list():
            source = FileSource(path, engine.store.metadata())
            with contextlib.closing(source):
                summary = run_stream(engine, source, lambda line: None, intervals=Intervals())
            count += summary.events
            # Others may grow meanwhile: a new store is opened beside the thread that appends.
            if path in self._earlier and source.offset < path.stat().st_size:
                os.truncate(path, source.offset)
        return count

    def close(self) -> None:
        """Release the directory."""
        for file in self._files:
            file.close()
        self._lock.close()

    def _list(self) -> list[Path]:
        """Return all files, in the order in which they were written."""
        return sorted(self.directory.glob("*.jsonl"))

    def _new_path(self) -> Path:
        """Return a path behind all others, also if the clock was set back."""
        begin = f"events-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        last = max((path.stem for path in self._list() if _NAME.fullmatch(path.stem)), default="")
        number = 0
        if last[: len(begin)] >= begin:  # more than one may begin within a second
            begin, number = last[: len(begin)], int(last[len(begin) + 1 :]) + 1
        if number > 9999:
            raise UserError(f"--journal={self.directory}: too many files begin with {begin}.")
        return self.directory / f"{begin}-{number:04d}.jsonl"


class _JournalFile:
    """A file that grows.

    Attributes:
      path: of the file.
      began: `time.monotonic()` of its first event.
      key: of its position in the metadata of a store.
    """

    def __init__(self, path: Path):
        self.path, self.began, self.key = path, time.monotonic(), position_key(path.name)
        self._head, self._offset, self._synced = b"", 0, 0
        self._lock = threading.Lock()  # of `sync` and `close`
        try:
            self._file = open(path, "xb", buffering=0)
            _sync_directory(path.parent)
        except OSError as error:
            raise write_error(f"--journal={path}", error) from error

    def write(self, block: bytes) -> None:
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            raise write_error(f"--journal={self.path}", error) from error
        self._head += block[: max(0, HEAD_BYTES - len(self._head))]
        self._offset += len(block)

    def position(self) -> bytes:
        return encode_position(self._offset, self._head)

    def sync(self) -> None:
        with self._lock:
            written = self._offset
            if written == self._synced or self._file.closed:
                return
            try:
                os.fdatasync(self._file.fileno())
            except OSError as error:
                raise write_error(f"--journal={self.path}", error) from error
            self._synced = written

    def close(self) -> None:
        self.sync()
        with self._lock:
            self._file.close()


class JournaledStore:
    """A store whose commits wait until the journal is on the disk; see `stores.base.Store`."""

    def __init__(self, store: Store, journal: Journal):
        self._store, self._journal = store, journal

    def put(
        self,
        records: Mapping[str, bytes],
        metadata: Mapping[str, bytes],
        states: Mapping[str, bytes] = NOTHING,
    ) -> None:
        self._journal.sync()
        self._store.put(records, metadata, states)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def format_event(event: Event) -> bytes:
    """Return an event as a line, as `events.parse_event` reads it.

    >>> format_event(Event("7", "BANANAS", 1483271606))
    b'{"user": "7", "item": "BANANAS", "time": 1483271606}\\n'
    """
    fields = {name: value for name, value in event._asdict().items() if value is not None}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
