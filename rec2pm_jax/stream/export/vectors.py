"""A directory of vectors for other search engines: their inner products are the model's scores.

    manifest.json             model, dimension, metric, counts and checksums
    items.parquet             row, item, title, count, and `vector` [D]
    users-00000.parquet       user, events, updates, and `vector` [D], `memory` [tokens, numbers]
    own_items-00000.parquet   user, item, addend: what the score has beside the inner product

Users come in parts, so that any number of them fits in memory. With the format "npy" tables have no
vectors: row i of item_vectors.npy, user_vectors-00000.npy or memory-00000.npy belongs to row i of the
table. Models without a preference memory write none.

Users without events have no vector, as they get the most frequent items. The manifest counts them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data.polars_io import write_parquet
from rec2pm_jax.errors import UserError
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.stream.all_users import AllUsers, UserGroup
from rec2pm_jax.stream.compute.vectors import UserVectors, item_vectors, user_vectors
from rec2pm_jax.stream.export.new_directory import check_not_existing, new_directory
from rec2pm_jax.stream.lines.events import RawTime, parse_time
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.typing import PADDING_ID

FORMATS = ("parquet", "npy")
FORMAT_VERSION = 1
USERS_PER_PART = 32_768
_RULE = (
    "The score of an item is the inner product of the user's and the item's vector, plus the addend "
    "if own_items has this user and item. To find the best k, search for k + (own items of the user) "
    "items, replace the scores of the own items, and keep the best k. A user who is not in users "
    "gets the items of the highest count."
)


class VectorOptions(NamedTuple):
    """How vectors are written.

    Attributes:
      format: one of `FORMATS`.
      time: of the request that the vectors are for, as in `Recommender.recommend`.
      checkpoint: what the manifest says of the checkpoint, such as its step.
    """

    format: str = "parquet"
    time: RawTime = None
    checkpoint: Mapping[str, Any] | None = None


def write_vectors(
    users: AllUsers,
    output: str | Path,
    options: VectorOptions = VectorOptions(),  # noqa: B008 (immutable)
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Write the vectors of a model's items and users to a directory.

    Args:
      users: of `users_of_dataset` or `users_of_store`, not used up.
      output: the directory, which must not exist.
      progress: called with the number of users so far.

    Returns:
      The manifest.

    Raises:
      UserError: `output` exists or cannot be written, the model cannot use the time, no user has
        events, vectors are not finite, or a stored user is damaged.

    Example:
      >>> import rec2pm_jax
      >>> from rec2pm_jax.stream.all_users import users_of_dataset
      >>> model = rec2pm_jax.load("runs/demo/rec2pm")
      >>> manifest = write_vectors(users_of_dataset(model, names=["1"]), "vectors")
      >>> manifest["metric"], manifest["users"]
      ('inner product', 1)
      >>> pl.read_parquet("vectors/own_items-*.parquet").columns
      ['user', 'item', 'addend']
    """
    output, recommender = check_not_existing(output), users.recommender
    if options.format not in FORMATS:
        raise UserError(f"format={options.format!r} must be one of {', '.join(FORMATS)}.")
    asked = parse_time(options.time, recommender.catalogue.rules)
    if asked is not None and not recommender.catalogue.uses_times:
        raise UserError("This model reads no times: leave out the --time of the request.")
    manifest = _make_manifest(users, options, asked)
    with new_directory(output, manifest) as temporary:
        writer = _Writer(temporary, recommender, options.format)
        writer.write_items()
        seen = 0
        for group in users.groups:
            active = [(name, user) for name, user in group if user.events]
            if active:
                found = user_vectors(recommender, [user for _, user in active], asked)
                writer.add_users(active, found)
            seen += len(group)
            progress(seen)
        writer.write_part()
        if not writer.counts["users"]:
            raise UserError("No user has events, so there are no vectors to write.")
        manifest |= writer.counts
        manifest["users_without_events"] = seen - writer.counts["users"]
    return manifest


def _make_manifest(users: AllUsers, options: VectorOptions, time: int | None) -> dict[str, Any]:
    """Return the manifest without what is counted."""
    recommender = users.recommender
    memory, dataset = recommender.method.memory, recommender.dataset
    shape = [memory.capacity * memory.slots, memory.slot_dim]
    return {
        "format_version": FORMAT_VERSION,
        "format": options.format,
        "metric": "inner product",
        "dimension": recommender.method.config.model.dim,
        "rule": _RULE,
        "request_time": time,
        "memory_format": users.memory if memory.capacity else None,
        "memory_shape": shape if memory.capacity else None,
        **dataclasses.asdict(recommender.identity),
        "checkpoint": options.checkpoint,
        "data_hash": dataset.content_hash if dataset else None,
        "git_commit": git_commit(),
        "items": recommender.catalogue.num_items,
    }


class _Writer:
    """Writes the tables; users are held until they fill a part.

    Attributes:
      counts: what was written, for the manifest.
    """

    def __init__(self, directory: Path, recommender: Recommender, format: str):
        self._directory, self._recommender, self._format = directory, recommender, format
        self._raw_ids = pl.Series(recommender.catalogue.items.raw_ids, dtype=pl.String)
        self._users: UserGroup = []
        self._vectors: list[UserVectors] = []  # of these users
        self.counts = {"users": 0, "own_items": 0, "most_own_items": 0, "parts": 0}

    def write_items(self) -> None:
        """Write the catalogue."""
        items, vectors = self._recommender.catalogue.items, item_vectors(self._recommender)
        table = {
            "row": np.arange(len(vectors)),
            "item": self._raw_ids[1:],
            "title": pl.Series(items.titles[1:], dtype=pl.String),
            "count": items.counts[1:],
        }
        self._write("items", table, {"item_vectors": vectors})

    def add_users(self, users: UserGroup, vectors: UserVectors) -> None:
        """Hold users with events, and write all that are held if they fill a part."""
        self._users += users
        self._vectors.append(vectors)
        if len(self._users) >= USERS_PER_PART:
            self.write_part()

    def write_part(self) -> None:
        """Write the users that are held, if any."""
        if not self._users:
            return
        part = f"-{self.counts['parts']:05d}"
        queries, ids, addends = map(np.concatenate, zip(*self._vectors, strict=True))
        states = [user.state for _, user in self._users]
        arrays = {f"user_vectors{part}": queries}
        if self._recommender.method.memory.capacity:
            stored = [np.asarray(state.memory, np.float32) for state in states]
            arrays[f"memory{part}"] = np.stack(stored)
        names = pl.Series([name for name, _ in self._users], dtype=pl.String)
        table = {
            "user": names,
            "events": np.array([user.events for _, user in self._users], np.int64),
            "updates": np.array([state.segments for state in states], np.int64),
        }
        self._write(f"users{part}", table, arrays)
        row, place = np.nonzero(ids != PADDING_ID)
        own = {
            "user": names.gather(row),
            "item": self._raw_ids.gather(ids[row, place]),
            "addend": addends[row, place],
        }
        self._write(f"own_items{part}", own, {})
        most = int(np.bincount(row, minlength=1).max())
        self.counts["users"] += len(names)
        self.counts["own_items"] += len(row)
        self.counts["most_own_items"] = max(self.counts["most_own_items"], most)
        self.counts["parts"] += 1
        self._users, self._vectors = [], []

    def _write(self, name: str, table: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Write a table, and arrays as further columns or as files of their own.

        Args:
          name: of the table's file.
          table: columns by name.
          arrays: a row per row of the table, by the names of their files.
        """
        if self._format == "npy":
            for file, array in arrays.items():
                np.save(self._directory / f"{file}.npy", array)
        else:
            table |= {_COLUMNS[file.partition("-")[0]]: array for file, array in arrays.items()}
        write_parquet(pl.DataFrame(table), self._directory / f"{name}.parquet")


_COLUMNS = {"item_vectors": "vector", "user_vectors": "vector", "memory": "memory"}  # of arrays
