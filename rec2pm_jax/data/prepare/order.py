"""Stage 3, order: the events of every partition in their order, one partition after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from rec2pm_jax.data.event_order import order_events
from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.data.histories import Histories
from rec2pm_jax.data.prepare.column_files import Arrays, ColumnFiles
from rec2pm_jax.data.prepare.partition import PartitionedLog, UserPartitions
from rec2pm_jax.data.prepare.workspace import Workspace

_CHUNK = 1 << 20  # events


class OrderedLog:
    """Users with their events in order, as `write_ordered` leaves them in one directory per partition.

    Attributes:
      users: the users and their partitions.
      duplicates: number of events that repeat another one in every column.
      first_time, last_time: the smallest and the largest time.
      order_key: whether a key finer than seconds may have ordered events of equal time.
    """

    def __init__(self, users: UserPartitions, directories: list[Path]):
        self.users = users
        self._directories = directories
        facts = [json.loads((d / "facts.json").read_text()) for d in directories]
        self.duplicates: int = sum(fact["duplicates"] for fact in facts)
        self.first_time: int = min(fact["first"] for fact in facts)
        self.last_time: int = max(fact["last"] for fact in facts)
        self.order_key = any(fact["order_key"] for fact in facts)

    def column(self, name: str) -> Iterator[np.ndarray]:
        """Yield the parts of `ids`, `times` or `types` of all events."""
        for directory in self._directories:
            for chunk in ColumnFiles(directory).chunks(_CHUNK, (name,)):
                yield chunk[name]

    def newest_times(self) -> np.ndarray:
        """Return the time of each user's newest event, int64 [users]."""
        newest = []
        for part, directory in enumerate(self._directories):
            times = ColumnFiles(directory).read(("times",))["times"]
            newest.append(times[self.users.offsets(part)[1:] - 1])
        return np.concatenate(newest)

    def count_late(self, known: pl.DataFrame) -> int:
        """Count the events that are older than the newest known event of their user.

        Args:
          known: user and last, the time of each known user's newest event.
        """
        joined = self.users.names.to_frame("user").join(
            known, on="user", how="left", maintain_order="left"
        )
        newest = joined["last"].fill_null(np.iinfo(np.int64).min).to_numpy()
        late = 0
        for part, directory in enumerate(self._directories):
            times = ColumnFiles(directory).read(("times",))["times"]
            lengths = np.diff(self.users.offsets(part))
            late += int(np.sum(times < np.repeat(newest[self.users.users(part)], lengths)))
        return late

    def parts(self) -> Iterator[Histories]:
        """Yield the histories of one partition at a time."""
        for part, directory in enumerate(self._directories):
            columns = ColumnFiles(directory).read()
            yield Histories(
                users=self.users.names[self.users.users(part)].to_list(),
                offsets=self.users.offsets(part),
                ids=columns["ids"],
                times=columns["times"],
                types=columns.get("types"),
            )


def order_partitions(
    log: PartitionedLog, space: Workspace, ties: str, seed: int, progress: bool
) -> OrderedLog:
    """Order the events of every partition, and delete each unordered partition after that.

    Args:
      log: the partitions.
      space: keeps finished partitions after a kill.
      ties, seed: as in `event_order.order_events`.
      progress: show a progress bar.
    """
    item_hash = hash_strings(log.items["raw_id"])
    directories = []
    users = log.users
    total = int(users.counts.sum())
    with tqdm(
        total=total, desc="ordering", unit="event", unit_scale=True, disable=not progress
    ) as bar:
        for part in range(len(users)):

            def order(directory: Path, part: int = part) -> None:
                names = users.names[users.users(part)].to_list()
                events = log.events(part).read()
                rows, duplicates = order_events(events, ties, seed, hash_strings(names), item_hash)
                ordered = Histories(
                    users=names,
                    offsets=users.offsets(part),
                    ids=events["item"][rows] + 1,
                    times=events["time"][rows],
                    types=events["type"][rows] if "type" in events else None,
                )
                order_key = has_order_key(events)
                write_ordered(directory, ordered, duplicates, order_key)

            directories.append(space.stage(f"ordered-{part}", order))
            log.events(part).remove()
            bar.update(int(users.counts[users.users(part)].sum()))
    return OrderedLog(users, directories)


def has_order_key(events: Arrays) -> bool:
    """Return whether a key finer than seconds may order some of the events."""
    return any(name in events and bool(events[name].any()) for name in ("fraction", "order"))


def write_ordered(directory: Path, histories: Histories, duplicates: int, order_key: bool) -> None:
    """Write one ordered partition.

    Args:
      directory: an empty directory for the result, which `OrderedLog` reads.
      histories: the users of the partition.
      duplicates: events that repeat another one in every column.
      order_key: whether a key finer than seconds may have ordered events of equal time.
    """
    columns = {"ids": histories.ids, "times": histories.times}
    dtypes = {"ids": "<i4", "times": "<i8"}
    if histories.types is not None:
        columns["types"], dtypes["types"] = histories.types, "i1"
    ColumnFiles(directory, dtypes).append(columns)
    facts = {
        "duplicates": duplicates,
        "first": int(histories.times.min()),
        "last": int(histories.times.max()),
        "order_key": order_key,
    }
    (directory / "facts.json").write_text(json.dumps(facts))
