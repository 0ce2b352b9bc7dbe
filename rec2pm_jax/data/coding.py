"""The first stage: interactions, frame by frame, become columns of numbers on disk.

Users, items and event types get codes by first appearance; only their texts and one frame are held
in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from rec2pm_jax.data.columns import ColumnFiles, write_parquet
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.errors import UserError

MAX_EVENT_TYPES = 127  # type ids are stored as int8
_DTYPES = {"user": "<u4", "item": "<u4", "time": "<i8", "type": "i1", "order": "<i8"}
_OPTIONAL = {"type": "event_type", "order": "order"}


class Dictionary:
    """Texts and their codes, 0, 1, .. by first appearance."""

    def __init__(self):
        self._table = pl.DataFrame(schema={"text": pl.String, "code": pl.UInt32})

    def encode(self, texts: pl.Series) -> np.ndarray:
        """uint32 codes; unknown texts are added."""
        frame = texts.to_frame("text")
        codes = self._look_up(frame, self._table)
        unknown = codes.is_null()
        if unknown.any():
            missing = frame.filter(unknown)
            first = self._table.height
            fresh = missing.unique(maintain_order=True).with_columns(
                code=pl.int_range(first, first + pl.len(), dtype=pl.UInt32)
            )
            self._table = pl.concat([self._table, fresh])
            codes = codes.scatter(unknown.arg_true(), self._look_up(missing, fresh))
        return codes.to_numpy()

    @staticmethod
    def _look_up(frame: pl.DataFrame, table: pl.DataFrame) -> pl.Series:
        return frame.join(table, on="text", how="left", maintain_order="left")["code"]

    @property
    def texts(self) -> pl.Series:
        """The text of every code."""
        return self._table["text"]


class CodedLog:
    """What `encode` has left in a directory.

    Attributes:
      events: columns user, item, time and, where the source has them, type and order.
      users, items: the texts of the codes.
      event_types: likewise; empty without event types.
      facts: item_level, has_times, ties, dropped and notes of the source.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self.events = ColumnFiles(directory)
        self.users = pl.read_parquet(directory / "users.parquet")["text"]
        self.items = pl.read_parquet(directory / "items.parquet")["text"]
        self.facts = json.loads((directory / "facts.json").read_text())
        self.event_types: list[str] = self.facts["event_types"]

    @property
    def item_table(self) -> pl.DataFrame:
        """The source's item, title and category."""
        return pl.read_parquet(self._directory / "titles.parquet")

    @property
    def ground_truth(self) -> dict[str, np.ndarray] | None:
        file = self._directory / "ground_truth.npz"
        return dict(np.load(file)) if file.is_file() else None


def encode(interactions: Interactions, directory: Path, rows: int, progress: bool) -> None:
    """Goes through the frames once, at most `rows` rows at a time.

    Raises:
      UserError: no events, more than 127 event types.
    """
    dictionaries = {"user": Dictionary(), "item": Dictionary(), "type": Dictionary()}
    events: ColumnFiles | None = None
    # A short reading shows no bar, so that what is refused at once is one line of error.
    off = not progress
    with tqdm(desc="reading", unit="event", unit_scale=True, delay=1, disable=off) as bar:
        for frame in _slices(interactions, rows):
            columns = {"user": frame["user"], "item": frame["item"], "time": frame["timestamp"]}
            columns |= {c: frame[name] for c, name in _OPTIONAL.items() if name in frame.columns}
            events = events or ColumnFiles(directory, {c: _DTYPES[c] for c in columns})
            events.append(
                {
                    name: dictionaries[name].encode(values)
                    if name in dictionaries
                    else values.to_numpy()
                    for name, values in columns.items()
                }
            )
            if len(dictionaries["type"].texts) > MAX_EVENT_TYPES:
                raise UserError(
                    f"More than {MAX_EVENT_TYPES} event types, which is all that can be stored; "
                    "choose another --type_column."
                )
            bar.update(frame.height)
    if events is None:
        raise UserError("The input has no events.")
    for name in ("user", "item"):
        write_parquet(dictionaries[name].texts.to_frame(), directory / f"{name}s.parquet")
    write_parquet(interactions.items, directory / "titles.parquet")
    if interactions.ground_truth is not None:
        np.savez(directory / "ground_truth.npz", **interactions.ground_truth)
    facts = {
        "item_level": interactions.item_level,
        "has_times": interactions.has_times,
        "ties": interactions.ties,
        "dropped": dict(interactions.dropped),
        "notes": dict(interactions.notes),
        "event_types": dictionaries["type"].texts.to_list(),
    }
    (directory / "facts.json").write_text(json.dumps(facts))


def _slices(interactions: Interactions, rows: int) -> Iterator[pl.DataFrame]:
    for frame in interactions.frames():
        if frame.height:
            yield from frame.iter_slices(rows)
