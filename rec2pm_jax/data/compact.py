"""A dataset with deltas rewritten as plain shards, within `max_memory`.

As in preparation, users go to partitions that fit in memory; the events of the deltas are dealt out to
these, and each is merged with the base, which is in the order of users already. Ids stay as they are.
A kill leaves finished partitions for the next start, and the dataset as it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from rec2pm_jax.data import dropped, writer
from rec2pm_jax.data.columns import Arrays, ColumnFiles, deal_out
from rec2pm_jax.data.dataset import Dataset, delta_paths, open_dataset, read_info
from rec2pm_jax.data.histories import Histories, content_hash
from rec2pm_jax.data.merging import merge
from rec2pm_jax.data.options import parse_bytes
from rec2pm_jax.data.partitions import check_largest, divide
from rec2pm_jax.data.prepare import rows_within
from rec2pm_jax.data.records import read_parts, read_table, verify
from rec2pm_jax.data.sequences import Sequences, write_ordered
from rec2pm_jax.data.workspace import Workspace, recover, workspace
from rec2pm_jax.errors import UserError


def compact(path: str, max_memory: str = "4GiB", progress: bool = True) -> dict:
    """Rewrites a dataset with deltas as plain shards; returns its description.

    Raises:
      UserError: no dataset or nothing to compact there, damaged files, a user with more events than
        `max_memory` can order, or a full disk. The dataset stays as it was.
    """
    target = Path(path)
    memory = parse_bytes(max_memory)
    recover(target)
    info = read_info(target)
    if not info.get("deltas"):
        raise UserError(f"{target} has no deltas; there is nothing to compact.")
    dataset = open_dataset(target)
    with workspace(target, {"compact": info["content_hash"], "max_memory": memory}) as space:
        compaction = _Compaction(dataset, rows_within(memory), memory)
        sequences = compaction.run(space, progress)
        space.publish(space.stage("dataset", lambda d: compaction.write(d, sequences, progress)))
    return read_info(target)


class _Compaction:
    """The stages. `users`, `counts` and `firsts` are as `Partitions` has them, in the old order."""

    def __init__(self, dataset: Dataset, rows: int, max_memory: int):
        self._dataset, self._rows = dataset, rows
        self.users = pl.Series([dataset.user(i) for i in range(len(dataset))], dtype=pl.String)
        self.counts = dataset.lengths.astype(np.int64)
        check_largest(self.users, self.counts, max_memory)
        self.firsts, self._part_of_user = divide(self.counts, rows)
        deltas = delta_paths(dataset.path, dataset.info["deltas"])
        self._sources = [(dataset.path, dataset.info["base"])] + [(d, read_info(d)) for d in deltas]

    def run(self, space: Workspace, progress: bool) -> Sequences:
        dealt = space.stage("dealt", self._deal)
        path, info = self._sources[0]
        names, lengths = _users(path, info)
        # Users who came later have nothing in the base.
        base = read_parts(path, info, names, lengths, np.minimum(self.firsts[1:], len(names)))
        directories = []
        parts = len(self.firsts) - 1
        bar = tqdm(base, desc="merging", unit="part", total=parts, disable=not progress)
        for part, old in enumerate(bar):

            def make(directory: Path, part=part, old=old) -> None:
                merged = self._merged(dealt, part, old)
                write_ordered(directory, merged, duplicates=0, order_key=False)

            directories.append(space.stage(f"ordered-{part}", make))
        return Sequences(self, directories)

    def write(self, directory: Path, sequences: Sequences, progress: bool) -> None:
        """The files of the dataset; what the filters dropped moves out of the newest delta."""
        old, info = self._dataset, self._dataset.info
        items = old.item_table
        users, events = len(self.users), int(self.counts.sum())
        shards = writer.write_sequences(
            directory, sequences.parts(), users, events, progress=progress
        )
        truth = old.path / "ground_truth.npz"
        truth = dict(np.load(truth)) if truth.is_file() else None
        writer.write_tables(directory, self.users, self.counts, sequences.lasts(), items, truth)
        kept = self._sources[-1][0] / dropped.DIRECTORY
        if kept.is_dir():
            shutil.copytree(kept, directory / dropped.DIRECTORY)
        plain = {name: value for name, value in info.items() if name not in ("base", "deltas")}
        plain["grown_from"] = [*info["grown_from"], info["content_hash"]]
        plain["shards"] = shards
        plain["content_hash"] = content_hash(
            self.users.to_list(),
            self.counts,
            sequences.column,
            items,
            info["event_types"],
            info["has_times"],
        )
        writer.write_info(directory, plain)

    def _deal(self, directory: Path) -> None:
        """Checks every file, and deals the events of the deltas to `directory`/DELTA-PARTITION."""
        for path, info in self._sources:
            verify(path, info, self._rows)
        index = pl.DataFrame({"user": self.users}).with_row_index("index")
        dtypes = {"user": "<i8", "ids": "<i4", "times": "<i8"}
        dtypes |= {"types": "i1"} if self._dataset.event_types else {}
        for number, (path, info) in enumerate(self._sources[1:]):
            names, lengths = _users(path, info)
            places = pl.DataFrame({"user": names}).join(
                index, on="user", how="left", maintain_order="left"
            )
            places = places["index"].to_numpy().astype(np.int64)
            files = [
                ColumnFiles(directory / f"{number}-{part}", dtypes)
                for part in range(len(self.firsts) - 1)
            ]
            done = 0
            for part in read_parts(path, info, names, lengths, divide(lengths, self._rows)[0][1:]):
                user = np.repeat(places[done : done + len(part.users)], part.lengths)
                done += len(part.users)
                deal_out(files, self._part_of_user[user], part._asdict() | {"user": user})

    def _merged(self, dealt: Path, part: int, base: Histories) -> Histories:
        first, stop = self.firsts[part : part + 2]
        names = self.users[first:stop].to_list()
        parts = [base]
        for number in range(len(self._sources) - 1):
            columns = ColumnFiles(dealt / f"{number}-{part}").read()
            parts.append(_grouped(columns, columns.pop("user") - first, names))
        raw_items, seed = self._dataset.items.raw_ids[1:], self._dataset.info["ties"]["seed"]
        return merge(parts, names, raw_items, self._dataset.merging_rule, seed)


def _users(path: Path, info: dict) -> tuple[list[str], np.ndarray]:
    users = read_table(path, "users", info["users"])
    return users["user"].to_list(), users["length"].to_numpy()


def _grouped(columns: Arrays, user: np.ndarray, names: list[str]) -> Histories:
    """Events whose users (indices of `names`, [n]) come one after the other."""
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    return Histories(
        users=[names[u] for u in user[starts]],
        offsets=np.append(starts, len(user)),
        ids=columns["ids"],
        times=columns["times"],
        types=columns.get("types"),
    )
