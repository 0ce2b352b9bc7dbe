"""The third stage: every partition in order, one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from rec2pm_jax.data.columns import ColumnFiles
from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.data.histories import Histories
from rec2pm_jax.data.ordering import order_events
from rec2pm_jax.data.partitions import Partitions
from rec2pm_jax.data.workspace import Workspace

_CHUNK = 1 << 20


class Sequences:
    """The users of `partitions` with their events in order.

    Attributes:
      duplicates: rows equal to another in every column.
      first, last: the smallest and largest time.
      order_key: whether something finer than seconds may have put events of equal time in order.
    """

    def __init__(self, partitions: Partitions, directories: list[Path]):
        self._partitions = partitions
        self._directories = directories
        facts = [json.loads((d / "facts.json").read_text()) for d in directories]
        self.duplicates = sum(fact["duplicates"] for fact in facts)
        self.first = min(fact["first"] for fact in facts)
        self.last = max(fact["last"] for fact in facts)
        self.order_key = any(fact["order_key"] for fact in facts)

    def column(self, name: str) -> Iterator[np.ndarray]:
        """`ids`, `times` or `types` of all events."""
        for directory in self._directories:
            for chunk in ColumnFiles(directory).chunks(_CHUNK, (name,)):
                yield chunk[name]

    def lasts(self) -> np.ndarray:
        """int64 [users], the time of each user's newest event."""
        newest = []
        for part, directory in enumerate(self._directories):
            times = ColumnFiles(directory).read(("times",))["times"]
            newest.append(times[self._offsets(part)[1:] - 1])
        return np.concatenate(newest)

    def late(self, known: pl.DataFrame) -> int:
        """Events older than the newest one that their user already has in `known` (user, last)."""
        before = self._partitions.users.to_frame("user").join(
            known, on="user", how="left", maintain_order="left"
        )
        before = before["last"].fill_null(np.iinfo(np.int64).min).to_numpy()
        late = 0
        for part, directory in enumerate(self._directories):
            newest = before[slice(*self._partitions.firsts[part : part + 2])]
            times = ColumnFiles(directory).read(("times",))["times"]
            late += int(np.sum(times < np.repeat(newest, np.diff(self._offsets(part)))))
        return late

    def _offsets(self, part: int) -> np.ndarray:
        users = slice(*self._partitions.firsts[part : part + 2])
        return np.concatenate([[0], np.cumsum(self._partitions.counts[users])])

    def parts(self) -> Iterator[Histories]:
        for part, directory in enumerate(self._directories):
            users = slice(*self._partitions.firsts[part : part + 2])
            columns = ColumnFiles(directory).read()
            yield Histories(
                users=self._partitions.users[users].to_list(),
                offsets=self._offsets(part),
                ids=columns["ids"],
                times=columns["times"],
                types=columns.get("types"),
            )


def order_partitions(
    partitions: Partitions, space: Workspace, ties: str, seed: int, progress: bool
) -> Sequences:
    """Orders what an earlier start has not ordered yet; frees the partitions as it goes."""
    item_hash = hash_strings(partitions.items["raw_id"])
    directories = []
    total = int(partitions.counts.sum())
    with tqdm(
        total=total, desc="ordering", unit="event", unit_scale=True, disable=not progress
    ) as bar:
        for part in range(len(partitions)):
            users = slice(*partitions.firsts[part : part + 2])

            def make(directory: Path, part=part, users=users) -> None:
                names = partitions.users[users].to_list()
                events = partitions.events(part).read()
                rows, duplicates = order_events(events, ties, seed, hash_strings(names), item_hash)
                ordered = Histories(
                    users=names,
                    offsets=np.concatenate([[0], np.cumsum(partitions.counts[users])]),
                    ids=events["item"][rows] + 1,
                    times=events["time"][rows],
                    types=events["type"][rows] if "type" in events else None,
                )
                order_key = "order" in events and bool(events["order"].any())
                write_ordered(directory, ordered, duplicates, order_key)

            directories.append(space.stage(f"ordered-{part}", make))
            partitions.events(part).remove()
            bar.update(int(partitions.counts[users].sum()))
    return Sequences(partitions, directories)


def write_ordered(directory: Path, histories: Histories, duplicates: int, order_key: bool) -> None:
    """Leaves in `directory` what `Sequences` reads of one partition."""
    columns = {"ids": histories.ids, "times": histories.times, "types": histories.types}
    dtypes = {"ids": "<i4", "times": "<i8"}
    dtypes |= {} if histories.types is None else {"types": "i1"}
    ColumnFiles(directory, dtypes).append(columns)
    facts = {
        "duplicates": duplicates,
        "first": int(histories.times.min()),
        "last": int(histories.times.max()),
        "order_key": order_key,
    }
    (directory / "facts.json").write_text(json.dumps(facts))
