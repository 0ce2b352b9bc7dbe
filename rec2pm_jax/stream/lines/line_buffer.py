"""Splits blocks of bytes into whole lines."""

from __future__ import annotations

import json


class LineBuffer:
    """Lines of the blocks fed so far, without the rest behind the last line break."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._next = 0
        self._rest = b""

    def feed(self, block: bytes) -> None:
        """Append a block."""
        *lines, self._rest = (self._rest + block).split(b"\n")
        lines = [line + b"\n" for line in lines]
        self._lines = self._lines[self._next :] + lines
        self._next = 0

    def finish(self) -> None:
        """Accept what follows the last line break as a line."""
        if self._rest:
            self._lines.append(self._rest)
            self._rest = b""

    @property
    def ends_with_half_a_line(self) -> bool:
        """Whether what follows the last line break is not JSON, as in a file still being written."""
        try:
            json.loads(self._rest or b"0")
        except (ValueError, RecursionError):
            return bool(self._rest.strip())
        return False

    def pop(self, max_lines: int) -> list[bytes]:
        """Remove and return at most `max_lines` lines."""
        lines = self._lines[self._next : self._next + max_lines]
        self._next += len(lines)
        return lines
