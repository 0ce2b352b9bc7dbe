"""A synthetic dataset of any size on disk, for `--suite=data`.

Users have 5 events and more, on average as many as asked for. Items follow a skewed popularity, and
times are uniform over a year. Everything depends on the sizes and the number of the shard only. So
nothing is held in memory, and a start after a kill keeps the shards that are complete.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.hashing import mix
from rec2pm_jax.data.histories import Histories, lengths_to_offsets
from rec2pm_jax.data.info import INFO_FILE
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import write
from rec2pm_jax.data.prepare.describe import Content, describe
from rec2pm_jax.data.prepare.encode import SourceFacts
from rec2pm_jax.data.record_files import encode_records, shard_bounds, shard_name, write_records

FIRST_TIME = 1_600_000_000
_SPAN = 365 * 86_400
_MIN_LENGTH = 5
_SKEW = 3  # an item is uniform ** _SKEW of the catalogue


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a dataset; `events` is met on average."""

    events: int
    items: int
    users: int

    @property
    def shards(self) -> int:
        """Number of record files."""
        return write.count_shards(self.users, self.events)

    def lengths(self) -> np.ndarray:
        """Return the events of each user: int64 [U], exponential above the smallest."""
        share = (mix(0, np.arange(self.users)) >> np.uint64(11)) / 2.0**53
        mean = max(self.events / self.users - _MIN_LENGTH, 1)
        return _MIN_LENGTH + (-mean * np.log1p(-share)).astype(np.int64)


def write_dataset(directory: Path, sizes: Sizes) -> None:
    """Write the dataset of these sizes, or what is missing of it.

    Args:
      directory: for this dataset alone.
      sizes: of the dataset.

    Raises:
      OSError: the disk is full.
    """
    if (directory / INFO_FILE).is_file():
        return
    directory.mkdir(parents=True, exist_ok=True)
    lengths = sizes.lengths()
    counts = np.zeros(sizes.items + 1, np.int64)
    newest = np.empty(sizes.users, np.int64)
    bounds = shard_bounds(sizes.users, sizes.shards)
    for shard in range(sizes.shards):
        users = slice(bounds[shard], bounds[shard + 1])
        part = _make_shard(sizes, shard, users.start, lengths[users])
        np.add.at(counts, part.ids, 1)
        newest[users] = part.newest_times
        file = directory / shard_name(shard, sizes.shards)
        if not file.is_file():
            write_records(file.with_suffix(".partial"), encode_records(part))
            file.with_suffix(".partial").replace(file)
    names = _names("u", 0, sizes.users)
    items = pl.DataFrame(
        {
            "id": np.arange(1, sizes.items + 1, dtype=np.int32),
            "raw_id": _names("i", 1, sizes.items),
            "count": counts[1:],
        }
    ).with_columns(title=pl.lit(None, pl.String), category=pl.lit(None, pl.String))
    write.write_users(directory, names, lengths, newest)
    write.write_items(directory, items)

    def column(name: str) -> Iterator[np.ndarray]:
        for shard in range(sizes.shards):
            users = slice(bounds[shard], bounds[shard + 1])
            yield getattr(_make_shard(sizes, shard, users.start, lengths[users]), name)

    content = Content(
        SourceFacts("item", True, "keep", {}, {}, [], {"rows": int(lengths.sum()), "hash": ""}),
        names,
        lengths,
        items,
        [],
        column,
        dropped={},
        duplicates=0,
        first_time=FIRST_TIME,
        order_key=False,
    )
    options = PrepareOptions("large_data", str(directory), ties="keep")
    write.replace_info(directory, describe(options, content) | {"shards": sizes.shards})


def _make_shard(sizes: Sizes, shard: int, first: int, lengths: np.ndarray) -> Histories:
    """Return the events of the users of one shard; `first` is the first of them."""
    rng = np.random.default_rng([sizes.items, sizes.users, shard])
    offsets = lengths_to_offsets(lengths)
    events = int(offsets[-1])
    ids = 1 + (sizes.items * rng.random(events, np.float32) ** _SKEW).astype(np.int32)
    ids = np.minimum(ids, sizes.items).astype(np.int32)
    times = rng.integers(0, _SPAN, events)
    # One sort of (user, time) puts every user's times in order.
    owner = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    times = np.sort(owner << 32 | times) & 0xFFFFFFFF
    names = _names("u", first, len(lengths)).to_list()
    return Histories(names, offsets, ids, FIRST_TIME + times, None)


def _names(prefix: str, first: int, count: int) -> pl.Series:
    """Return raw ids of equal length, in the order of text."""
    numbers = pl.int_range(1_000_000_000 + first, 1_000_000_000 + first + count, eager=True)
    return (prefix + numbers.cast(pl.String)).alias("raw_id")
