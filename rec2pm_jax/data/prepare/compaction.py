"""Compaction: rewrite a dataset with deltas as plain shards, within `max_memory`.

As in preparation, users belong to partitions that fit in memory. The events of the deltas are divided
among the partitions. Then each partition is merged with the base, whose users are in order already.
Ids stay as they are. After a kill the dataset is unchanged, and the next start uses finished
partitions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.data.deltas import delta_paths, merge_histories
from rec2pm_jax.data.histories import Histories, group_users, hash_content
from rec2pm_jax.data.info import read_info
from rec2pm_jax.data.prepare import dropped_events, write
from rec2pm_jax.data.prepare.column_files import Arrays, ColumnFiles, append_by_part
from rec2pm_jax.data.prepare.limits import check_time_span
from rec2pm_jax.data.prepare.memory import MemoryLimit
from rec2pm_jax.data.prepare.order import OrderedLog, write_ordered
from rec2pm_jax.data.prepare.partition import UserPartitions
from rec2pm_jax.data.prepare.run import check_replaceable
from rec2pm_jax.data.prepare.workspace import Workspace, open_workspace
from rec2pm_jax.data.record_files import read_parts, read_users, verify_files
from rec2pm_jax.errors import UserError


def compact(path: str, max_memory: str = "4GiB", progress: bool = True) -> dict:
    """Rewrite a dataset with deltas as plain shards.

    Args:
      path: the directory of the dataset.
      max_memory: memory for events, for example 500MB.
      progress: show progress bars.

    Returns:
      The new contents of `dataset.json`.

    Raises:
      UserError: no dataset or no delta there, damaged files, a user with more events than
        `max_memory` can order, or a full disk. The dataset stays as it was.
    """
    target = Path(path)
    limit = MemoryLimit.parse(max_memory)
    check_replaceable(target)
    with open_workspace(target) as space:
        info = read_info(target)  # under the lock, so that no log is appended meanwhile
        if not info.get("deltas"):
            raise UserError(f"{target} has no deltas; there is nothing to compact.")
        dataset = open_dataset(target)
        space.claim({"compact": info["content_hash"], "max_memory": limit.bytes})
        compaction = _Compaction(dataset, limit)
        log = compaction.merge(space, progress)
        check_time_span(log.first_time, log.last_time, info["has_times"])
        space.publish(space.stage("dataset", lambda d: compaction.write(d, log, progress)))
        return read_info(target)


class _Compaction:
    """The stages: divide the events of the deltas, merge every partition, write the dataset."""

    def __init__(self, dataset: Dataset, limit: MemoryLimit):
        self._dataset, self._rows = dataset, limit.rows
        names = pl.Series([dataset.user(i) for i in range(len(dataset))], dtype=pl.String)
        counts = dataset.lengths.astype(np.int64)
        limit.check_largest_user(names, counts)
        firsts, self._part_of_user = group_users(counts, limit.rows)
        self._users = UserPartitions(names, counts, firsts)
        self._base = (dataset.path, dataset.info["base"])
        deltas = delta_paths(dataset.path, dataset.info["deltas"])
        self._deltas = [(directory, read_info(directory)) for directory in deltas]

    def merge(self, space: Workspace, progress: bool) -> OrderedLog:
        """Merge the base and the deltas, one partition at a time.

        Raises:
          UserError: the files of the dataset are damaged.
        """
        divided = space.stage("divided", self._divide_deltas)
        path, info = self._base
        names, lengths = read_users(path, info)
        # Users who came later have no events in the base.
        ends = np.minimum(self._users.firsts[1:], len(names))
        base = read_parts(path, info, names, lengths, ends)
        directories = []
        parts = len(self._users)
        bar = tqdm(base, desc="merging", unit="part", total=parts, disable=not progress)
        for part, old in enumerate(bar):

            def merge(directory: Path, part: int = part, old: Histories = old) -> None:
                merged = self._merge_part(divided, part, old)
                write_ordered(directory, merged, duplicates=0, order_key=False)

            directories.append(space.stage(f"ordered-{part}", merge))
        return OrderedLog(self._users, directories)

    def write(self, directory: Path, log: OrderedLog, progress: bool) -> None:
        """Write the files of the dataset.

        Dropped events are those of the newest delta, which has counted all earlier ones again.

        Raises:
          OSError: the disk is full.
        """
        old, info = self._dataset, self._dataset.info
        names, counts = self._users.names, self._users.counts
        shards = write.write_sequences(directory, log, progress=progress)
        write.write_users(directory, names, counts, log.newest_times())
        write.write_items(directory, old.item_table)
        if (old.path / "ground_truth.npz").is_file():
            shutil.copy(old.path / "ground_truth.npz", directory)
        kept = self._deltas[-1][0] / dropped_events.DIRECTORY
        if kept.is_dir():
            shutil.copytree(kept, directory / dropped_events.DIRECTORY)
        plain = {name: value for name, value in info.items() if name not in ("base", "deltas")}
        plain["grown_from"] = [*info["grown_from"], info["content_hash"]]
        plain["shards"] = shards
        plain["content_hash"] = hash_content(
            names.to_list(),
            counts,
            log.column,
            old.item_table,
            info["event_types"],
            info["has_times"],
        )
        write.write_info(directory, plain)

    def _divide_deltas(self, directory: Path) -> None:
        """Check every file, and write the events of the deltas to `directory`/DELTA-PARTITION."""
        for path, info in (self._base, *self._deltas):
            verify_files(path, info, self._rows)
        index = pl.DataFrame({"user": self._users.names}).with_row_index("index")
        dtypes = {"user": "<i8", "ids": "<i4", "times": "<i8"}
        dtypes |= {"types": "i1"} if self._dataset.event_types else {}
        for number, (path, info) in enumerate(self._deltas):
            names, lengths = read_users(path, info)
            joined = pl.DataFrame({"user": names}).join(
                index, on="user", how="left", maintain_order="left"
            )
            places = joined["index"].to_numpy().astype(np.int64)
            files = [
                ColumnFiles(directory / f"{number}-{part}", dtypes)
                for part in range(len(self._users))
            ]
            done = 0
            ends = group_users(lengths, self._rows).ends
            for part in read_parts(path, info, names, lengths, ends):
                user = np.repeat(places[done : done + len(part.users)], part.lengths)
                done += len(part.users)
                columns = {name: getattr(part, name) for name in dtypes if name != "user"}
                append_by_part(files, self._part_of_user[user], columns | {"user": user})

    def _merge_part(self, divided: Path, part: int, base: Histories) -> Histories:
        names = self._users.names[self._users.users(part)].to_list()
        parts = [base]
        for number in range(len(self._deltas)):
            columns = ColumnFiles(divided / f"{number}-{part}").read()
            user = columns.pop("user") - self._users.firsts[part]
            parts.append(_group_by_user(columns, user, names))
        raw_items, seed = self._dataset.items.raw_ids[1:], self._dataset.info["ties"]["seed"]
        return merge_histories(parts, names, raw_items, self._dataset.merging_rule, seed)


def _group_by_user(columns: Arrays, user: np.ndarray, names: list[str]) -> Histories:
    """Return histories from events that are grouped by user already.

    Args:
      columns: ids, times and, in a dataset with event types, types, [n] each.
      user: int [n], the index of each event's user in `names`.
      names: raw ids.
    """
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    return Histories(
        users=[names[u] for u in user[starts]],
        offsets=np.append(starts, len(user)),
        ids=columns["ids"],
        times=columns["times"],
        types=columns.get("types"),
    )
