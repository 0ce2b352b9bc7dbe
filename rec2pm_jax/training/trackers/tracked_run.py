"""Which run of a tracker belongs to a workdir, and which rows it has received."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rec2pm_jax.errors import UserError
from rec2pm_jax.json_file import write_json


class TrackedRun:
    """The file `train/KIND.json` of a workdir.

    Attributes:
      run_id: of the tracker; empty before the first start.
    """

    def __init__(self, workdir: Path, kind: str, place: str, step: int) -> None:
        """Read the file, if it is of the same place.

        Args:
          workdir: of the run.
          kind: of the tracker.
          place: server or project; another place has another run.
          step: that training continues from.

        Raises:
          UserError: the file is damaged.
        """
        self._path, self._place, self._step = workdir / "train" / f"{kind}.json", place, step
        self.run_id = ""
        self._sent: dict[str, int] = {}
        if not self._path.exists():
            return
        try:
            known = json.loads(self._path.read_text())
            if known["place"] == place:
                self.run_id, self._sent = known["run_id"], dict(known["sent"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._path} is damaged ({error}): remove it, and the run begins a new curve."
            ) from error

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def begin(self, run_id: str) -> None:
        """Remember the id of a run."""
        self.run_id = run_id
        self._write()

    def is_new(self, stream: str, step: int) -> bool:
        """Return whether a row was not sent yet.

        A resumed run repeats the steps after its checkpoint, whose rows are there already.
        """
        return not self._step < step <= self._sent.get(stream, 0)

    def mark_sent(self, stream: str, step: int) -> None:
        """Remember that a row was sent."""
        self._sent[stream] = step
        self._write()

    def _write(self) -> None:
        write_json(self._path, {"place": self._place, "run_id": self.run_id, "sent": self._sent})


def flatten_config(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return {"section.field": value}.

    >>> flatten_config({"train": {"steps": 3}})
    {'train.steps': 3}
    """
    return {
        f"{section}.{field}": value
        for section, fields in config.items()
        for field, value in fields.items()
    }
