"""Where lines come from, and how far they were read: files, pipes and growing directories.

How far a file was read is a position, see `positions.py`.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.lines.line_buffer import LineBuffer
from rec2pm_jax.stream.lines.positions import HEAD_BYTES, digest, encode_position, position_key
from rec2pm_jax.stream.options import Worker
from rec2pm_jax.stream.stores.base import Store

_READ_BYTES = 1 << 18
_POLL_S = 0.1  # between two looks for new files


class Source(Protocol):
    """Lines in order.

    Attributes:
      done: whether there will be no more lines.
    """

    done: bool

    def read(self, max_lines: int, timeout_s: float) -> list[bytes]:
        """Return at most `max_lines` whole lines; wait up to `timeout_s` seconds for the first."""
        ...

    def positions(self) -> Mapping[str, bytes]:
        """Return the place behind the last line returned, as metadata of a store; empty for a pipe."""
        ...

    def notes(self) -> list[str]:
        """Return what a person should know about the input, as lines of a report."""
        ...

    def close(self) -> None:
        """Close all open files."""
        ...


@runtime_checkable
class PartitionedSource(Source, Protocol):
    """A source whose lines are divided among workers before they are read, such as a Kafka topic.

    Parts may move to another worker, which happens in `read`.
    """

    def on_hand_over(self, hand_over: Callable[[], None]) -> None:
        """Set what `read` calls before parts go to another worker.

        `hand_over()` applies all lines returned so far, commits them with `positions()`, and releases
        all users.
        """
        ...

    def check_user(self, index: int, user: str, rules: ValueRules) -> None:
        """Raise RejectedInput if line `index` of the last `read` must not hold lines of a user."""
        ...

    def place(self, index: int) -> str:
        """Return where line `index` of the last `read` is from, for a report."""
        ...


class PipeSource:
    """Lines of standard input or another file descriptor, returned as soon as they arrive."""

    def __init__(self, descriptor: int, name: str):
        self.done = False
        self._descriptor, self._name = descriptor, name
        self._buffer, self._ended = LineBuffer(), False

    def read(self, max_lines: int, timeout_s: float) -> list[bytes]:
        lines = self._buffer.pop(max_lines)
        if lines or self._ended:
            self.done = not lines
            return lines
        try:
            if not select.select([self._descriptor], [], [], timeout_s)[0]:
                return []
            block = os.read(self._descriptor, _READ_BYTES)
        except OSError as error:
            raise _unreadable(self._name, error) from error
        self._buffer.feed(block)
        if not block:
            self._ended = True
            self._buffer.finish()
        return self._buffer.pop(max_lines)

    def positions(self) -> Mapping[str, bytes]:
        return {}

    def notes(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


class FileSource:
    """Lines of one file, from a stored position to its end.

    A last line without its break counts if it is JSON. Otherwise the position stays before it.

    Attributes:
      offset: bytes of the lines returned so far.
    """

    def __init__(self, path: str | Path, metadata: Mapping[str, bytes], *, growing: bool = False):
        """Open a file.

        Args:
          metadata: of a store, which may hold the position of this file.
          growing: whether lines may be appended: a line without its break waits for it, and the
            source is never done.

        Raises:
          UserError: the file cannot be read, or is not the file of the stored position.
        """
        self.done = False
        self.path, self._growing = Path(path), growing
        self._buffer, self._ended = LineBuffer(), False
        try:
            self._file = open(path, "rb", buffering=0)
            self._head = self._file.read(HEAD_BYTES)
        except OSError as error:
            raise _unreadable(path, error) from error
        self._begin = self.offset = self._stored_offset(metadata.get(self._key))
        try:
            self._file.seek(self.offset)
        except OSError as error:
            raise _unreadable(path, error) from error

    @property
    def _key(self) -> str:
        return position_key(self.path.name)

    def _stored_offset(self, position: bytes | None) -> int:
        if position is None:
            return 0
        known = json.loads(position)
        size = os.fstat(self._file.fileno()).st_size
        if size < known["offset"] or known["head"] != digest(self._head[: known["head_bytes"]]):
            raise UserError(
                f"--events={self.path} is another file than the one of this name that the store has "
                f"read {known['offset']} bytes of: give the new file another name."
            )
        return known["offset"]

    def read(self, max_lines: int, timeout_s: float) -> list[bytes]:
        lines = self._buffer.pop(max_lines)
        if not lines and not self._ended:
            try:
                block = self._file.read(_READ_BYTES)
            except OSError as error:
                raise _unreadable(self.path, error) from error
            self._buffer.feed(block)
            if not block and not self._growing:
                self._ended = True
                if not self._buffer.ends_with_half_a_line:
                    self._buffer.finish()
            lines = self._buffer.pop(max_lines)
        self.done = self._ended and not lines
        self.offset += sum(map(len, lines))
        return lines

    def positions(self) -> Mapping[str, bytes]:
        if len(self._head) < HEAD_BYTES:  # the file may have grown since
            self._head = os.pread(self._file.fileno(), HEAD_BYTES, 0)
        return {self._key: encode_position(self.offset, self._head)}

    def notes(self) -> list[str]:
        if not self._ended:
            return []
        if self._buffer.ends_with_half_a_line:
            return [
                f"--events={self.path} ends with half a line after byte {self.offset}, which was left: "
                "complete it and start again to read it"
            ]
        if 0 < self._begin == self.offset:
            return [
                f"--events={self.path} has nothing new: append lines to it, or pass another file"
            ]
        return []

    def close(self) -> None:
        self._file.close()


class DirectorySource:
    """Lines of the `*.jsonl` files of a directory, in the order of their names, as they grow.

    New files and lines are looked for ten times a second. A line counts once its break is written.
    """

    def __init__(self, path: str | Path, metadata: Mapping[str, bytes]):
        """Watch a directory.

        Args:
          metadata: of a store, which may hold positions of its files.
        """
        self.done = False
        self._path, self._metadata = Path(path), metadata
        self._files: dict[str, FileSource] = {}
        self._listed_at = float("-inf")

    def read(self, max_lines: int, timeout_s: float) -> list[bytes]:
        end = time.monotonic() + timeout_s
        while True:
            for source in self._files.values():
                lines = source.read(max_lines, 0)
                if lines:
                    return lines
            self._open_new_files()
            left = end - time.monotonic()
            if left <= 0:
                return []
            time.sleep(min(_POLL_S, left))

    def _open_new_files(self) -> None:
        """List the directory, at most once in `_POLL_S`."""
        if time.monotonic() - self._listed_at < _POLL_S:
            return
        try:
            names = sorted(p.name for p in self._path.iterdir() if p.suffix == ".jsonl")
        except OSError as error:
            raise _unreadable(self._path, error) from error
        new = [name for name in names if name not in self._files]
        for name in new:
            self._files[name] = FileSource(self._path / name, self._metadata, growing=True)
        if new:
            self._files = dict(sorted(self._files.items()))
        self._listed_at = time.monotonic()

    def positions(self) -> Mapping[str, bytes]:
        return {k: v for source in self._files.values() for k, v in source.positions().items()}

    def notes(self) -> list[str]:
        return []

    def close(self) -> None:
        for source in self._files.values():
            source.close()


def open_source(path: str, store: Store, worker: Worker = Worker()) -> Source:  # noqa: B008
    """Open what `--events` names.

    Args:
      path: a file, a directory, a named pipe, - for standard input, or a topic (`kafka.address`).
      store: with the positions of what was read before.
      worker: which of the processes that share the store this is.

    Returns:
      A source that continues at the stored positions.

    Raises:
      UserError: it cannot be read.
    """
    if path.startswith("kafka://"):
        from rec2pm_jax.stream.lines.kafka.source import KafkaSource  # its package is optional

        return KafkaSource(path, store, worker)
    if path == "-":
        return PipeSource(0, path)
    metadata = store.metadata()
    if os.path.isdir(path):
        return DirectorySource(path, metadata)
    try:
        regular = os.path.isfile(path)
        if regular or not os.path.exists(path):
            return FileSource(path, metadata)
        return PipeSource(os.open(path, os.O_RDONLY), path)  # a named pipe
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: OSError) -> UserError:
    return UserError(f"--events={path} cannot be read ({error.strerror}).")
