"""Where metrics go: JSON-lines files that a resumed run continues exactly, and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

STREAMS = ("train", "validation")

_log = logging.getLogger(__name__)


class MetricWriter:
    """Writes scalars to `<directory>/<stream>.jsonl` and to TensorBoard event files beside them.

    A row is `{"step": ..., name: value, ...}`. Rows hold only what a rerun reproduces, so that the
    files of a killed and resumed run equal those of an undisturbed one byte for byte; speeds and
    clock times go to TensorBoard alone.
    """

    def __init__(self, directory: Path, step: int = 0, positions: Mapping[str, int] | None = None):
        """Continues after `step`: each file is cut at its checkpointed position (0: emptied).

        Warns where a file is shorter than its position (somebody edited or removed it).
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._files = {}
        for stream in STREAMS:
            path = directory / f"{stream}.jsonl"
            self._files[stream] = _open_at(path, (positions or {}).get(stream, 0))
        # purge_step hides events that a killed run wrote after its last checkpoint.
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(
        self,
        stream: str,
        step: int,
        values: Mapping[str, float],
        volatile: Mapping[str, float] | None = None,
    ) -> None:
        """Appends a row to `stream`; `volatile` values (speeds) go to TensorBoard only.

        Numbers that are not finite become null in the file, which JSON requires.
        """
        row = {name: _json_number(value) for name, value in values.items()}
        file = self._files[stream]
        file.write((json.dumps({"step": step, **row}) + "\n").encode())
        file.flush()
        for name, value in {**values, **(volatile or {})}.items():
            if value is not None:
                # TensorBoard has no "@" in names.
                self._board.add_scalar(f"{stream}/{name.replace('@', '_')}", value, step)

    def positions(self) -> dict[str, int]:
        """Bytes per file, all of them safe on disk when this returns."""
        for file in self._files.values():
            os.fsync(file.fileno())
        return {stream: os.fstat(file.fileno()).st_size for stream, file in self._files.items()}

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._board.close()


def _open_at(path: Path, position: int):
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
    return value if value is not None and math.isfinite(value) else None
