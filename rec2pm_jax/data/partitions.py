"""The second stage: filters, vocabulary, and events dealt out to partitions of users.

Users go by the UTF-8 bytes of their raw ids; a partition is a range of them whose events fit in
memory together, so that ordered partitions, one after the other, are the dataset.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data import dropped, filters
from rec2pm_jax.data.coding import CodedLog
from rec2pm_jax.data.columns import ColumnFiles, deal_out, write_parquet
from rec2pm_jax.errors import UserError

BYTES_PER_EVENT = 200  # of the largest partition while it is ordered, measured


class Known(NamedTuple):
    """What a dataset that is appended to has.

    Attributes:
      users: raw ids and `last`, the time of each user's newest event.
      items: the item table.
      dropped: where the events are that its filters dropped, or None unless they are kept.
      dropped_rows: how many these are.
    """

    users: pl.DataFrame
    items: pl.DataFrame
    event_types: list[str]
    has_times: bool
    dropped: Path | None = None
    dropped_rows: int = 0


def no_users() -> pl.DataFrame:
    return pl.DataFrame(schema={"user": pl.String, "last": pl.Int64})


def no_vocabulary() -> pl.DataFrame:
    return pl.DataFrame(
        schema={
            "id": pl.Int32,
            "raw_id": pl.String,
            "count": pl.Int64,
            "title": pl.String,
            "category": pl.String,
        }
    )


class Partitions:
    """What `deal` has left in a directory.

    Attributes:
      users: raw ids (string), sorted.
      counts: int64 [users], events of each.
      items: the item table of `filters.vocabulary`.
      dropped: number of events dropped by the filters.
      dropped_events: where they are, None unless they are kept.
      event_types: names of the type ids from 1.
      firsts: int64 [P + 1]; partition p has users [firsts[p], firsts[p + 1]).
    """

    def __init__(self, directory: Path):
        self._directory = directory
        table = pl.read_parquet(directory / "users.parquet")
        self.users, self.counts = table["user"], table["count"].to_numpy()
        self.items = pl.read_parquet(directory / "items.parquet")
        plan = json.loads((directory / "plan.json").read_text())
        self.dropped: dict[str, int] = plan["dropped"]
        self.event_types: list[str] = plan["event_types"]
        self.firsts = np.array(plan["firsts"], np.int64)

    def __len__(self) -> int:
        return len(self.firsts) - 1

    @property
    def dropped_events(self) -> Path | None:
        kept = self._directory / dropped.DIRECTORY
        return kept if kept.is_dir() else None

    def events(self, part: int) -> ColumnFiles:
        """Columns user (from 0 within the partition), item (id - 1), time, and type and order."""
        return ColumnFiles(self._directory / str(part))


def deal(
    log: CodedLog,
    directory: Path,
    min_item_count: int,
    min_user_events: int,
    rows: int,
    max_memory: int,
    keep_dropped: bool = False,
    known: Known | None = None,
) -> None:
    """Filters the log and writes its partitions of about `rows` events.

    Users and items that are `known` stay whatever their counts, and ids and types keep their numbers;
    new ones follow. With `keep_dropped` the events that go are written apart.

    Raises:
      UserError: nothing is left, or a single user has more events than `max_memory` can order.
    """
    advice = "these are the dataset's own: append the log together with the next one"
    advice = advice if known else "lower them"
    known = known or Known(no_users(), no_vocabulary(), [], log.facts["has_times"])
    kept = filters.apply_filters(
        log.events,
        log.users.is_in(known.users["user"].to_list()).to_numpy(),
        log.items.is_in(known.items["raw_id"].to_list()).to_numpy(),
        min_item_count,
        min_user_events,
        rows,
        advice,
    )
    users, rank = _ranks(log.users, kept.users)
    counts = kept.users[kept.users > 0][np.argsort(rank[kept.users > 0])]
    check_largest(users, counts, max_memory)
    found = pl.DataFrame({"item": log.items, "count": kept.items}).filter(pl.col("count") > 0)
    items = _merge_items(known.items, found, log.item_table)
    item_index = np.where(kept.items > 0, _positions(log.items, items["raw_id"]), -1)
    event_types = [*known.event_types, *sorted(set(log.event_types) - set(known.event_types))]
    types = np.array([event_types.index(name) + 1 for name in log.event_types], np.int8)
    firsts, part_of_user = divide(counts, rows)
    dtypes = {name: dtype.str for name, dtype in log.events.dtypes.items()}
    files = [ColumnFiles(directory / str(p), dtypes) for p in range(len(firsts) - 1)]
    if keep_dropped:
        dropped.begin(directory, log)
    for number, chunk in enumerate(log.events.chunks(rows)):
        coded = dict(chunk)
        chunk["user"], chunk["item"] = rank[chunk["user"]], item_index[chunk["item"]]
        stays = (chunk["user"] >= 0) & (chunk["item"] >= 0)
        if not stays.all():
            if keep_dropped:
                dropped.write(directory, number, log, coded, ~stays)
            chunk = {name: values[stays] for name, values in chunk.items()}
        part = part_of_user[chunk["user"]]
        chunk["user"] = chunk["user"] - firsts[part]
        if "type" in chunk:
            chunk["type"] = types[chunk["type"]]
        deal_out(files, part, chunk)
    write_parquet(pl.DataFrame({"user": users, "count": counts}), directory / "users.parquet")
    write_parquet(items, directory / "items.parquet")
    plan = {
        "dropped": kept.dropped,
        "event_types": event_types,
        "firsts": firsts.tolist(),
    }
    (directory / "plan.json").write_text(json.dumps(plan))


def divide(counts: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Partitions of consecutive users with about `rows` events each.

    A user belongs where its first event falls, so that partitions exceed `rows` by less than a user.

    Returns:
      int64 [P + 1], where partitions begin, and int64 [users], the partition of each user.
    """
    starts = np.cumsum(counts) - counts
    _, firsts, part_of_user = np.unique(starts // rows, return_index=True, return_inverse=True)
    return np.append(firsts, len(counts)), part_of_user


def _ranks(texts: pl.Series, counts: np.ndarray) -> tuple[pl.Series, np.ndarray]:
    """The sorted texts of positive counts, and int64 [codes], each code's position there or -1."""
    kept = texts.filter(pl.Series(counts > 0)).sort()
    return kept, _positions(texts, kept)


def _positions(texts: pl.Series, table: pl.Series) -> np.ndarray:
    """int64: the position of each text in `table`, -1 where it is not there."""
    positions = table.alias("text").to_frame().with_row_index("position")
    joined = (
        texts.alias("text").to_frame().join(positions, on="text", how="left", maintain_order="left")
    )
    return joined["position"].cast(pl.Int64).fill_null(-1).to_numpy()


def _merge_items(known: pl.DataFrame, found: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """Known items with the counts of both, then new ones by the rule of `filters.vocabulary`."""
    fresh = found.filter(~pl.col("item").is_in(known["raw_id"].to_list()))
    fresh = filters.vocabulary(fresh, titles).with_columns(pl.col("id") + known.height)
    more = found.rename({"item": "raw_id", "count": "more"})
    both = known.join(more, on="raw_id", how="left", maintain_order="left").select(
        "id", "raw_id", pl.col("count") + pl.col("more").fill_null(0), "title", "category"
    )
    return pl.concat([both, fresh.with_columns(pl.col("id").cast(pl.Int32))])


def check_largest(users: pl.Series, counts: np.ndarray, max_memory: int) -> None:
    """Raises UserError for a user whose events `max_memory` cannot order."""
    largest = int(counts.argmax())
    needed = int(counts[largest]) * BYTES_PER_EVENT
    if needed > max_memory:
        raise UserError(
            f"User {users[largest]!r} has {counts[largest]} events, which are ordered in memory and "
            f"need {needed / 2**30:.1f} GiB; raise --max_memory, or leave the user out (is it a "
            "placeholder for unknown users, or a robot?)."
        )
