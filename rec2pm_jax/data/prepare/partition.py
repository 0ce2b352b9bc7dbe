"""Stage 2, partition: filters, item ids, and events divided into partitions of users.

Users are sorted by the UTF-8 bytes of their raw ids. A partition is a range of them whose events fit
in memory together. So the ordered partitions, one after the other, are the dataset.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.histories import group_users, lengths_to_offsets
from rec2pm_jax.data.polars_io import plain_path, write_parquet
from rec2pm_jax.data.prepare import dropped_events
from rec2pm_jax.data.prepare.column_files import ColumnFiles, append_by_part
from rec2pm_jax.data.prepare.dropped_events import DroppedEvents, DroppedEventWriter
from rec2pm_jax.data.prepare.encode import EncodedLog
from rec2pm_jax.data.prepare.filters import (
    Filters,
    apply_filters,
    empty_item_table,
    merge_items,
)
from rec2pm_jax.data.prepare.limits import check_event_types
from rec2pm_jax.data.prepare.memory import MemoryLimit


@dataclasses.dataclass(frozen=True)
class AppendTarget:
    """The contents of a dataset that a log is appended to.

    Attributes:
      users: raw ids and `last`, the time of each user's newest event, in the order of the dataset.
      items: the item table.
      event_types: names of the type ids from 1.
      has_times: whether its times are real.
      time_range: its smallest and largest time; empty without events.
      dropped: the events that its filters dropped, or None unless they are kept.
      logs: hashes of the logs that it holds.
    """

    users: pl.DataFrame
    items: pl.DataFrame
    event_types: list[str]
    has_times: bool
    time_range: tuple[int, ...] = ()
    dropped: DroppedEvents | None = None
    logs: frozenset[str] = frozenset()

    @classmethod
    def empty(cls) -> AppendTarget:
        """Return a dataset without users and items: what a first preparation starts from."""
        users = pl.DataFrame(schema={"user": pl.String, "last": pl.Int64})
        return cls(users, empty_item_table(), [], has_times=False)


@dataclasses.dataclass(frozen=True)
class UserPartitions:
    """Users in their order, and where partitions begin.

    Attributes:
      names: raw ids (string).
      counts: int64 [users], events of each.
      firsts: int64 [P + 1]; partition p has the users [firsts[p], firsts[p + 1]).
    """

    names: pl.Series
    counts: np.ndarray
    firsts: np.ndarray

    def __len__(self) -> int:
        """Return the number of partitions."""
        return len(self.firsts) - 1

    def users(self, part: int) -> slice:
        """Return the range of users of a partition."""
        return slice(*self.firsts[part : part + 2])

    def offsets(self, part: int) -> np.ndarray:
        """Return where each user's events begin within a partition, and its number of events."""
        return lengths_to_offsets(self.counts[self.users(part)])


class PartitionedLog:
    """The result of `partition_log` in a directory.

    Attributes:
      users: the users that remain, sorted, and their partitions.
      items: the item table.
      dropped: number of events dropped by each filter.
      event_types: names of the type ids from 1.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        table = pl.read_parquet(plain_path(directory / "users.parquet"))
        plan = json.loads((directory / "plan.json").read_text())
        self.users = UserPartitions(
            table["user"], table["count"].to_numpy(), np.array(plan["firsts"], np.int64)
        )
        self.items = pl.read_parquet(plain_path(directory / "items.parquet"))
        self.dropped: dict[str, int] = plan["dropped"]
        self.event_types: list[str] = plan["event_types"]

    @property
    def dropped_events(self) -> Path | None:
        """The directory of dropped events, or None unless they are kept."""
        kept = self._directory / dropped_events.DIRECTORY
        return kept if kept.is_dir() else None

    def events(self, part: int) -> ColumnFiles:
        """Return the events of a partition.

        The columns are user (from 0 within the partition), item (id - 1) and time. Sources may add
        type, fraction and order.
        """
        return ColumnFiles(self._directory / str(part))


def partition_log(
    log: EncodedLog,
    directory: Path,
    filters: Filters,
    limit: MemoryLimit,
    target: AppendTarget | None = None,
) -> None:
    """Filter a log, number its users and items, and write the events of each partition.

    Users and items of `target` stay whatever their counts. Ids and types keep their numbers, and new
    ones follow.

    Args:
      log: the encoded log.
      directory: an empty directory for the result, which `PartitionedLog` reads.
      filters: thresholds, and whether dropped events are written apart.
      limit: decides the size of a partition.
      target: the dataset that the log is appended to.

    Raises:
      UserError: no event remains, or one user has more events than `limit` can order.
    """
    advice = "lower them"
    if target is not None:
        advice = "these are the dataset's own: append the log together with the next one"
    target = target or AppendTarget.empty()
    kept = apply_filters(
        log.events,
        filters,
        log.users.is_in(target.users["user"].to_list()).to_numpy(),
        log.items.is_in(target.items["raw_id"].to_list()).to_numpy(),
        limit.rows,
        advice,
    )
    users = log.users.filter(pl.Series(kept.users > 0)).sort()
    user_index = _look_up(log.users, users)
    counts = kept.users[kept.users > 0][np.argsort(user_index[kept.users > 0])]
    limit.check_largest_user(users, counts)
    found = pl.DataFrame({"item": log.items, "count": kept.items}).filter(pl.col("count") > 0)
    items = merge_items(target.items, found, log.item_table)
    item_index = np.where(kept.items > 0, _look_up(log.items, items["raw_id"]), -1)
    names = log.facts.event_types
    event_types = [*target.event_types, *sorted(set(names) - set(target.event_types))]
    check_event_types(event_types)
    types = np.array([event_types.index(name) + 1 for name in names], np.int8)
    groups = group_users(counts, limit.rows)
    dtypes = {name: dtype.str for name, dtype in log.events.dtypes.items()}
    files = [ColumnFiles(directory / str(p), dtypes) for p in range(len(groups.ends))]
    writer = DroppedEventWriter(directory, log) if filters.keep_dropped else None
    for number, encoded in enumerate(log.events.chunks(limit.rows)):
        chunk = encoded | {
            "user": user_index[encoded["user"]],
            "item": item_index[encoded["item"]],
        }
        stays = (chunk["user"] >= 0) & (chunk["item"] >= 0)
        if not stays.all():
            if writer:
                writer.write(number, {name: values[~stays] for name, values in encoded.items()})
            chunk = {name: values[stays] for name, values in chunk.items()}
        part = groups.group_of_user[chunk["user"]]
        chunk["user"] = chunk["user"] - groups.firsts[part]
        if "type" in chunk:
            chunk["type"] = types[chunk["type"]]
        append_by_part(files, part, chunk)
    write_parquet(pl.DataFrame({"user": users, "count": counts}), directory / "users.parquet")
    write_parquet(items, directory / "items.parquet")
    plan = {
        "dropped": kept.dropped,
        "event_types": event_types,
        "firsts": groups.firsts.tolist(),
    }
    (directory / "plan.json").write_text(json.dumps(plan))


def _look_up(texts: pl.Series, table: pl.Series) -> np.ndarray:
    """Return the position of each text in `table`, -1 if it is not there: int64 [n]."""
    positions = table.alias("text").to_frame().with_row_index("position")
    joined = (
        texts.alias("text").to_frame().join(positions, on="text", how="left", maintain_order="left")
    )
    return joined["position"].cast(pl.Int64).fill_null(-1).to_numpy()
