"""What the workers of the Beam pipelines do: read files, order users and write shards."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rec2pm_jax.data.event_order import order_events
from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.data.histories import Histories
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare.log_hash import LogHash, hash_frame
from rec2pm_jax.data.prepare.order import has_order_key
from rec2pm_jax.data.reading.report import LogReport
from rec2pm_jax.data.record_files import encode_records, shard_name, write_records
from rec2pm_jax.data.sources.interactions import LogReader
from rec2pm_jax.errors import UserError

_FILE_BITS = 40  # bits of a row number below the number of its file

# item, time, type or "", fraction, order, row
Event: TypeAlias = tuple[str, int, str, int, int, int]


class Record(NamedTuple):
    """A user who is ready to be written.

    Attributes:
      user: raw id.
      data: the encoded sequence.
      duplicates: events that repeat another one in every column.
      order_key: whether a key finer than seconds may have ordered events.
    """

    user: str
    data: bytes
    duplicates: int
    order_key: bool


def report_file(options: PrepareOptions, path: str) -> dict[str, Any]:
    """Read a file, and return what is found in it.

    Beam logs the errors of workers with a traceback, so an error is a result here.

    Returns:
      `report`, a `LogReport` as a dictionary, and `log`, a `LogHash` as a list; or `error`, a text.
    """
    report, log = LogReport(), LogHash()
    try:
        for frame in LogReader.of(options).frames([Path(path)], report):
            if frame.height:
                log += hash_frame(frame)
    except UserError as error:
        return {"error": str(error)}
    return {"report": dataclasses.asdict(report), "log": list(log)}


def read_file(options: PrepareOptions, number: int, path: str) -> Iterator[tuple[str, Event]]:
    row = number << _FILE_BITS
    defaults: dict[str, Any] = {"event_type": "", "fraction": 0, "order": 0}
    for frame in LogReader.of(options).frames([Path(path)], LogReport()):
        columns: list[Iterable] = [frame["user"], frame["item"], frame["timestamp"]]
        for name, default in defaults.items():
            columns.append(frame[name] if name in frame.columns else [default] * frame.height)
        for user, *event in zip(*columns, strict=True):
            yield user, (*event, row)
            row += 1


def make_record(
    user: str,
    events: Iterable[Event],
    ids: dict[str, int],
    types: list[str],
    options: PrepareOptions,
) -> Record:
    """Return the record of one user."""
    events = sorted(events, key=lambda event: event[5])
    names = sorted({event[0] for event in events}, key=ids.__getitem__)
    index = {name: i for i, name in enumerate(names)}
    table = {
        "user": np.zeros(len(events), np.int64),
        "item": np.array([index[event[0]] for event in events], np.int64),
        "time": np.array([event[1] for event in events], np.int64),
        "fraction": np.array([event[3] for event in events], np.int64),
        "order": np.array([event[4] for event in events], np.int64),
    }
    if types:
        table["type"] = np.array([types.index(event[2]) + 1 for event in events], np.int8)
    rows, duplicates = order_events(
        table, options.ties, options.seed, hash_strings([user]), hash_strings(names)
    )
    item_ids = np.array([ids[name] for name in names], np.int32)
    history = Histories(
        [user],
        np.array([0, len(events)]),
        item_ids[table["item"]][rows],
        table["time"][rows],
        table["type"][rows] if types else None,
    )
    return Record(user, next(encode_records(history)), duplicates, has_order_key(table))


def write_shard(
    directory: Path, shard: int, shards: int, found: Iterable[Record]
) -> tuple[int, bool]:
    """Write a shard; return its number of duplicates, and whether a key ordered any events.

    Beam may run a worker twice. So the file has a unique name until it is complete.
    """
    target = directory / shard_name(shard, shards)
    partial = target.with_suffix(f".{uuid.uuid4().hex}")
    found = sorted(found)
    write_records(partial, (record.data for record in found))
    partial.rename(target)
    return sum(record.duplicates for record in found), any(record.order_key for record in found)
