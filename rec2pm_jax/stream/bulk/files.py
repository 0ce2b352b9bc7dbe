"""The output of `launch.recommend`: files of rows, and a manifest that a stopped call resumes from.

    part-00000.parquet    user, rank (from 1), item, title, score (null for users without events)
    manifest.json         checkpoint, data, filters, counts, and the rows of each file

It is written as OUTPUT.building and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data.dataset import Items
from rec2pm_jax.errors import UserError
from rec2pm_jax.json_file import replaced_file, write_json
from rec2pm_jax.lock import LOCK_FILE, alone_in
from rec2pm_jax.os_errors import write_error

FORMATS = ("parquet", "jsonl")
MANIFEST = "manifest.json"
_COUNTS = ("users", "rows", "popular", "fewer")


class Answers(NamedTuple):
    """What is recommended to some users, in their order.

    Attributes:
      names: raw ids of U users.
      counts: int64 [U], items of each.
      ids: int32 [n], item ids of all users, one user after the other, best first.
      scores: float32 [n]; NaN where there is none.
      popular: bool [U], whether the items are the most frequent ones.
    """

    names: list[str]
    counts: np.ndarray
    ids: np.ndarray
    scores: np.ndarray
    popular: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[Answers]) -> Answers:
        """Return the answers of several groups of users as one."""
        names = [name for part in parts for name in part.names]
        rest = (np.concatenate(columns) for columns in list(zip(*parts, strict=True))[1:])
        return cls(names, *rest)


class OutputFolder:
    """A folder that is filled file by file."""

    def __init__(self, folder: Path, manifest: dict[str, Any], items: Items, form: str):
        """Begin, or continue what a stopped call left.

        Args:
          folder: where files are written.
          manifest: what determines the rows; it must equal that of the stopped call.
          items: of the catalogue.
          form: one of `FORMATS`.

        Raises:
          UserError: a stopped call was begun with something else; the message names it.
        """
        self._folder, self._form = folder, form
        self._raw_ids, self._titles = pl.Series(items.raw_ids), pl.Series(items.titles)
        self.manifest = {"complete": False, **manifest, "files": {}}
        path = folder / MANIFEST
        if path.is_file():
            self._resume(path, json.loads(path.read_text()))
        else:
            write_json(path, self.manifest)

    def _resume(self, path: Path, found: dict[str, Any]) -> None:
        for name, value in self.manifest.items():
            if name not in ("files", "complete", "git_commit") and found.get(name) != value:
                raise UserError(
                    f"{path.parent} was begun with {name}={json.dumps(found.get(name))}, not "
                    f"{json.dumps(value)}: use the flags and data it was begun with, or remove it."
                )
        self.manifest = found

    def has(self, number: int) -> bool:
        """Return whether a file is there already."""
        return self._name(number) in self.manifest["files"]

    def write(self, number: int, answers: Answers, wanted: int) -> None:
        """Write one file.

        Args:
          number: of the file, from 0.
          answers: its rows.
          wanted: items that each user should have.

        Raises:
          UserError: it cannot be written.
        """
        counts = answers.counts
        first = np.cumsum(counts) - counts
        rank = np.arange(len(answers.ids)) - np.repeat(first, counts) + 1
        ids = pl.Series(answers.ids)
        frame = pl.DataFrame(
            {
                "user": pl.Series(answers.names, dtype=pl.String)[
                    np.repeat(np.arange(len(counts)), counts)
                ],
                "rank": pl.Series(rank.astype(np.int32)),
                "item": self._raw_ids.gather(ids),
                "title": self._titles.gather(ids),
                "score": pl.Series(answers.scores, nan_to_null=True),
            }
        )
        path = self._folder / self._name(number)
        try:
            with replaced_file(path) as temporary:
                if self._form == "parquet":
                    frame.write_parquet(temporary)
                else:
                    frame.write_ndjson(temporary)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise write_error(path, error) from error
        totals = (len(counts), frame.height, answers.popular.sum(), (counts < wanted).sum())
        row = {name: int(total) for name, total in zip(_COUNTS, totals, strict=True)}
        self.manifest["files"][path.name] = row
        write_json(self._folder / MANIFEST, self.manifest)

    def finish(self) -> dict[str, Any]:
        """Complete the manifest and return it."""
        files = self.manifest["files"]
        totals = {name: sum(row[name] for row in files.values()) for name in _COUNTS}
        self.manifest |= {"complete": True, **totals}
        write_json(self._folder / MANIFEST, self.manifest)
        return self.manifest

    def _name(self, number: int) -> str:
        return f"part-{number:05d}.{self._form}"


@contextlib.contextmanager
def building_folder(output: str) -> Iterator[Path]:
    """Give the block a folder OUTPUT.building, and rename it when the block ends without an error.

    Raises:
      UserError: `output` exists, cannot be written, or another process writes it.
    """
    final = Path(output)
    if os.path.lexists(final):
        raise UserError(f"--output={output} is there already: choose another name, or remove it.")
    building = final.with_name(f"{final.name}.building")
    with alone_in(building):
        try:
            yield building
        except BaseException:
            if not list(building.glob("part-*")):  # there is nothing to resume
                shutil.rmtree(building, ignore_errors=True)
            raise
        try:
            (building / LOCK_FILE).unlink(missing_ok=True)
            os.rename(building, final)
        except OSError as error:
            raise write_error(final, error) from error
