"""Where lines come from, and how far they were read: files, standard input, a growing directory.

Marks say, for each file, the offset behind the last line handed over and a digest of how the file
begins, so that another file under the same name is not taken for the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from rec2pm_jax.errors import UserError

_READ = 1 << 18
_HEAD = 1024
_POLL_S = 0.1


class Source(Protocol):
    """Lines in order.

    Attributes:
      done: there will be no more.
    """

    done: bool

    def read(self, most: int, wait: float) -> list[bytes]:
        """At most `most` whole lines; waits up to `wait` seconds for the first."""

    def marks(self) -> Mapping[str, bytes]:
        """Named marks of the place behind the last line handed over; none for a pipe."""

    def close(self) -> None:
        """Closes what is open."""


class _Lines:
    """Bytes in, whole lines out."""

    def __init__(self):
        self._lines: list[bytes] = []
        self._next = 0
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        lines = [line + b"\n" for line in lines]
        self._lines = self._lines[self._next :] + lines
        self._next = 0

    def finish(self) -> None:
        """The last line may lack its end."""
        if self._rest:
            self._lines.append(self._rest)
            self._rest = b""

    def take(self, most: int) -> list[bytes]:
        taken = self._lines[self._next : self._next + most]
        self._next += len(taken)
        return taken


class PipeSource:
    """Standard input, or any file descriptor, each line handed over as it comes."""

    def __init__(self, descriptor: int, name: str):
        self.done = False
        self._descriptor, self._name = descriptor, name
        self._lines, self._ended = _Lines(), False

    def read(self, most: int, wait: float) -> list[bytes]:
        taken = self._lines.take(most)
        if taken or self._ended:
            self.done = not taken
            return taken
        try:
            if not select.select([self._descriptor], [], [], wait)[0]:
                return []
            piece = os.read(self._descriptor, _READ)
        except OSError as error:
            raise _unreadable(self._name, error) from error
        self._lines.feed(piece)
        if not piece:
            self._ended = True
            self._lines.finish()
        return self._lines.take(most)

    def marks(self) -> Mapping[str, bytes]:
        return {}

    def close(self) -> None:
        pass


class FileSource:
    """One file from where its mark says, to its end.

    Attributes:
      offset: bytes handed over.
    """

    def __init__(self, path: str | Path, marks: Mapping[str, bytes], *, growing: bool = False):
        """growing: the last line waits for its end, and the source is never done.

        Raises:
          UserError: it cannot be read, or is not the file that the mark was made for.
        """
        self.done = False
        self.path, self._growing = Path(path), growing
        self._lines, self._ended = _Lines(), False
        try:
            self._file = open(path, "rb", buffering=0)
            self._head = self._file.read(_HEAD)
        except OSError as error:
            raise _unreadable(path, error) from error
        self.offset = self._start(marks.get(self._key))
        self._seek(self.offset)

    @property
    def _key(self) -> str:
        return f"input:{self.path.name}"

    def _start(self, mark: bytes | None) -> int:
        if mark is None:
            return 0
        known = json.loads(mark)
        size = os.fstat(self._file.fileno()).st_size
        if size < known["offset"] or known["head"] != _digest(self._head[: known["head_bytes"]]):
            raise UserError(
                f"--events={self.path} is another file than the one of this name that the store has "
                f"read {known['offset']} bytes of: give the new file another name."
            )
        return known["offset"]

    def _seek(self, offset: int) -> None:
        try:
            self._file.seek(offset)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def read(self, most: int, wait: float) -> list[bytes]:
        taken = self._lines.take(most)
        if not taken and not self._ended:
            try:
                piece = self._file.read(_READ)
            except OSError as error:
                raise _unreadable(self.path, error) from error
            self._lines.feed(piece)
            if not piece and not self._growing:
                self._ended = True
                self._lines.finish()
            taken = self._lines.take(most)
        self.done = self._ended and not taken
        self.offset += sum(map(len, taken))
        return taken

    def marks(self) -> Mapping[str, bytes]:
        if len(self._head) < _HEAD:  # it may have grown
            self._head = os.pread(self._file.fileno(), _HEAD, 0)
        head = self._head[: self.offset]
        mark = {"offset": self.offset, "head": _digest(head), "head_bytes": len(head)}
        return {self._key: json.dumps(mark).encode()}

    def close(self) -> None:
        self._file.close()


class DirectorySource:
    """The `*.jsonl` files of a directory in the order of their names, and what is appended to them.

    New lines are looked for in all files ten times a second; a line counts when its end is written.
    """

    def __init__(self, path: str | Path, marks: Mapping[str, bytes]):
        self.done = False
        self._path, self._known = Path(path), marks
        self._files: dict[str, FileSource] = {}
        self._looked = float("-inf")

    def read(self, most: int, wait: float) -> list[bytes]:
        end = time.monotonic() + wait
        while True:
            for source in self._files.values():
                lines = source.read(most, 0)
                if lines:
                    return lines
            self._look()
            left = end - time.monotonic()
            if left <= 0:
                return []
            time.sleep(min(_POLL_S, left))

    def _look(self) -> None:
        """Finds new files, as often as is sensible."""
        if time.monotonic() - self._looked < _POLL_S:
            return
        try:
            names = sorted(p.name for p in self._path.iterdir() if p.suffix == ".jsonl")
        except OSError as error:
            raise _unreadable(self._path, error) from error
        new = [name for name in names if name not in self._files]
        for name in new:
            self._files[name] = FileSource(self._path / name, self._known, growing=True)
        if new:
            self._files = dict(sorted(self._files.items()))
        self._looked = time.monotonic()

    def marks(self) -> Mapping[str, bytes]:
        return {k: v for source in self._files.values() for k, v in source.marks().items()}

    def close(self) -> None:
        for source in self._files.values():
            source.close()


def open_source(path: str, marks: Mapping[str, bytes]) -> Source:
    """The source that --events names; - is standard input.

    Args:
      marks: of a store, see `Store.marks`.

    Raises:
      UserError: it cannot be read.
    """
    if path == "-":
        return PipeSource(0, path)
    if os.path.isdir(path):
        return DirectorySource(path, marks)
    try:
        plain = os.path.isfile(path)
        if plain or not os.path.exists(path):
            return FileSource(path, marks)
        return PipeSource(os.open(path, os.O_RDONLY), path)  # a named pipe
    except OSError as error:
        raise _unreadable(path, error) from error


def _digest(head: bytes) -> str:
    return hashlib.blake2b(head, digest_size=8).hexdigest()


def _unreadable(path, error: OSError) -> UserError:
    return UserError(f"--events={path} cannot be read ({error.strerror}).")
