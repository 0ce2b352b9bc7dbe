"""Stage 1, encode: interactions, frame by frame, become columns of numbers on disk.

Users, items and event types get codes by first appearance. Memory holds their texts and one frame.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from rec2pm_jax.data.polars_io import plain_path, write_parquet
from rec2pm_jax.data.prepare.column_files import ColumnFiles
from rec2pm_jax.data.prepare.limits import check_event_types
from rec2pm_jax.data.prepare.log_hash import hash_events
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.errors import UserError

_DTYPES = {"user": "<u4", "item": "<u4", "time": "<i8", "type": "i1"}
_DTYPES |= {"fraction": "<i4", "order": "<i8"}
_OPTIONAL = {"type": "event_type", "fraction": "fraction", "order": "order"}


class TextCodes:
    """Texts and their codes 0, 1, .. by first appearance."""

    def __init__(self) -> None:
        self._table = pl.DataFrame(schema={"text": pl.String, "code": pl.UInt32})

    def encode(self, texts: pl.Series) -> np.ndarray:
        """Return the code of each text, uint32 [n], adding unknown texts."""
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


@dataclasses.dataclass(frozen=True)
class SourceFacts:
    """Facts that a source states about its log.

    Attributes:
      item_level: what an item is.
      has_times: whether times are real seconds.
      ties: the source's own rule for equal times.
      dropped: rows that the source left out, by reason.
      notes: other facts for `dataset.json`.
      event_types: names of the event types; empty without.
      log: number of rows and hash of the log, for `dataset.json`.
    """

    item_level: str
    has_times: bool
    ties: str
    dropped: dict[str, int]
    notes: dict[str, Any]
    event_types: list[str]
    log: dict[str, Any] = dataclasses.field(default_factory=dict)


class EncodedLog:
    """The result of `encode_log` in a directory.

    Attributes:
      events: columns user, item and time, and, if the source has them, type, fraction and order.
      users, items: the texts of the codes.
      facts: what the source states.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self.events = ColumnFiles(directory)
        self.users = pl.read_parquet(plain_path(directory / "users.parquet"))["text"]
        self.items = pl.read_parquet(plain_path(directory / "items.parquet"))["text"]
        self.facts = SourceFacts(**json.loads((directory / "facts.json").read_text()))

    @property
    def item_table(self) -> pl.DataFrame:
        """The source's item table, see `schema.Interactions.items`."""
        return pl.read_parquet(plain_path(self._directory / "titles.parquet"))

    @property
    def ground_truth(self) -> Path | None:
        """The file with the arrays of a synthetic source, or None."""
        file = self._directory / "ground_truth.npz"
        return file if file.is_file() else None


def encode_log(
    interactions: Interactions, directory: Path, rows: int, progress: bool, earlier_rows: int = 0
) -> None:
    """Write the columns of a log, reading its frames once.

    Args:
      interactions: the log.
      directory: an empty directory for the result, which `EncodedLog` reads.
      rows: at most so many rows at a time.
      progress: show a progress bar.
      earlier_rows: so many rows at the beginning are kept events of earlier logs.

    Raises:
      UserError: no events, or more than 127 event types.
    """
    codes = {"user": TextCodes(), "item": TextCodes(), "type": TextCodes()}
    events: ColumnFiles | None = None
    # With a delay, a log that is refused at once prints one line of error and no bar.
    off = not progress
    with tqdm(desc="reading", unit="event", unit_scale=True, delay=1, disable=off) as bar:
        for frame in _slice_frames(interactions, rows):
            columns = {"user": frame["user"], "item": frame["item"], "time": frame["timestamp"]}
            columns |= {c: frame[name] for c, name in _OPTIONAL.items() if name in frame.columns}
            events = events or ColumnFiles(directory, {c: _DTYPES[c] for c in columns})
            events.append(
                {
                    name: codes[name].encode(values) if name in codes else values.to_numpy()
                    for name, values in columns.items()
                }
            )
            check_event_types(codes["type"].texts)
            bar.update(frame.height)
    if events is None or len(events) <= earlier_rows:
        raise UserError("The input has no events.")
    for name in ("user", "item"):
        write_parquet(codes[name].texts.to_frame(), directory / f"{name}s.parquet")
    write_parquet(interactions.item_table(), directory / "titles.parquet")
    if interactions.ground_truth is not None:
        arrays: dict[str, Any] = dict(interactions.ground_truth)
        np.savez(directory / "ground_truth.npz", **arrays)
    texts = {name: known.texts for name, known in codes.items()}
    found = hash_events(events, texts, rows, earlier_rows)
    facts = SourceFacts(
        interactions.item_level,
        interactions.has_times,
        interactions.ties,
        dict(interactions.dropped),
        dict(interactions.notes),
        codes["type"].texts.to_list(),
        {"rows": found.rows, "hash": found.hex},
    )
    (directory / "facts.json").write_text(json.dumps(dataclasses.asdict(facts)))


def _slice_frames(interactions: Interactions, rows: int) -> Iterator[pl.DataFrame]:
    for frame in interactions.frames():
        if frame.height:
            yield from frame.iter_slices(rows)
