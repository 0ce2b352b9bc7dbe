"""The third stage: every partition in order, one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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
    """

    def __init__(self, partitions: Partitions, directories: list[Path]):
        self._partitions = partitions
        self._directories = directories
        facts = [json.loads((d / "facts.json").read_text()) for d in directories]
        self.duplicates = sum(fact["duplicates"] for fact in facts)
        self.first = min(fact["first"] for fact in facts)
        self.last = max(fact["last"] for fact in facts)

    def column(self, name: str) -> Iterator[np.ndarray]:
        """`ids`, `times` or `types` of all events."""
        for directory in self._directories:
            for chunk in ColumnFiles(directory).chunks(_CHUNK, (name,)):
                yield chunk[name]

    def parts(self) -> Iterator[Histories]:
        for part, directory in enumerate(self._directories):
            users = slice(*self._partitions.firsts[part : part + 2])
            columns = ColumnFiles(directory).read()
            yield Histories(
                users=self._partitions.users[users].to_list(),
                offsets=np.concatenate([[0], np.cumsum(self._partitions.counts[users])]),
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
                user_hash = hash_strings(partitions.users[users])
                events = partitions.events(part).read()
                _write_ordered(directory, events, ties, seed, user_hash, item_hash)

            directories.append(space.stage(f"ordered-{part}", make))
            partitions.events(part).remove()
            bar.update(int(partitions.counts[users].sum()))
    return Sequences(partitions, directories)


def _write_ordered(directory: Path, events, ties, seed, user_hash, item_hash) -> None:
    ordered = order_events(events, ties, seed, user_hash, item_hash)
    dtypes = {"ids": "<i4", "times": "<i8"} | ({"types": "i1"} if "type" in events else {})
    columns = {"ids": events["item"] + 1, "times": events["time"], "types": events.get("type")}
    files = ColumnFiles(directory, dtypes)
    files.append({name: columns[name][ordered.rows] for name in dtypes})
    facts = {
        "duplicates": ordered.duplicates,
        "first": int(events["time"].min()),
        "last": int(events["time"].max()),
    }
    (directory / "facts.json").write_text(json.dumps(facts))
