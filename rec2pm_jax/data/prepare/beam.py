"""The stages for `--source=interactions` as Apache Beam pipelines, for more than one machine.

Options, files and content hash are those of `run.prepare`. Workers read whole input files, order whole
users and write whole shards. The driver, which starts the pipelines, holds the ids of users and items
with their counts. At the end it reads the result once to hash it. The filter rule is iterated, so
every round of it is a pipeline that counts. Workers and driver must share the disk of the output
directory.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import apache_beam as beam
import numpy as np
import polars as pl
from apache_beam.options.pipeline_options import PipelineOptions

from rec2pm_jax.data.event_order import order_events
from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.data.histories import Histories
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import filters, write
from rec2pm_jax.data.prepare.describe import Content, describe
from rec2pm_jax.data.prepare.encode import SourceFacts
from rec2pm_jax.data.prepare.run import check_options, check_target, make_identity, publish_dataset
from rec2pm_jax.data.prepare.workspace import open_workspace
from rec2pm_jax.data.reading import log_files
from rec2pm_jax.data.record_files import (
    encode_records,
    read_histories,
    shard_name,
    write_records,
)
from rec2pm_jax.data.schema import empty_items
from rec2pm_jax.data.sources import interactions
from rec2pm_jax.errors import UserError

_FILE_BITS = 40  # bits of a row number below the number of its file

Event: TypeAlias = tuple[str, int, str, int, int]  # item, time, type or "", order, row
Record: TypeAlias = tuple[str, bytes, int]  # raw user id, encoded sequence, duplicates


@dataclasses.dataclass(frozen=True)
class _Job:
    """A preparation with Beam.

    Attributes:
      options: with the rule for ties that is applied.
      paths: the input files.
      runner: options of Beam's runner; None: the direct runner.
    """

    options: PrepareOptions
    paths: list[str]
    runner: PipelineOptions | None


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Events that remain after the filters.

    Attributes:
      users, items: raw id -> events.
      types: names of the event types, sorted.
      dropped: events dropped by each filter.
    """

    users: dict[str, int]
    items: dict[str, int]
    types: list[str]
    dropped: dict[str, int]


def prepare_with_beam(options: PrepareOptions, runner: PipelineOptions | None = None) -> dict:
    """Prepare a log with Apache Beam.

    Args:
      options: as for `prepare`, with `source` "interactions".
      runner: options of Beam's runner; None: the direct runner.

    Returns:
      The contents of `dataset.json`.

    Raises:
      UserError: as `prepare`, or another source. Beam wraps the errors of workers in its own.
    """
    if options.source != "interactions":
        raise UserError("Beam reads --source=interactions only; export the log to files.")
    if options.keep_dropped:
        raise UserError("Beam keeps no dropped events; leave --keep_dropped out.")
    check_options(options)
    options = dataclasses.replace(options, ties=options.ties or "shuffle")
    target = Path(options.output_dir)
    check_target(target, options.overwrite)
    paths = [str(p) for p in log_files.find_input_files(options.input, options.source)]
    job = _Job(options, paths, runner)
    with open_workspace(target, make_identity(options) | {"beam": True}) as space:
        return publish_dataset(space, lambda directory: _write(directory, job), options)


def _write(directory: Path, job: _Job) -> None:
    """Write the files of the dataset."""
    counts = _count_until_stable(directory, job)
    names = sorted(counts.users)
    lengths = np.array([counts.users[name] for name in names], np.int64)
    table = filters.number_items(
        pl.DataFrame({"item": list(counts.items), "count": list(counts.items.values())}),
        empty_items(),
    )
    shards = write.count_shards(len(names), int(lengths.sum()), job.options.shards)
    duplicates = _write_shards(directory, job, counts, table, names, shards)
    partial_info = {"users": len(names), "shards": shards, "event_types": counts.types}
    histories = read_histories(directory, partial_info, names, lengths)
    facts = SourceFacts(
        item_level="item",
        has_times=bool(job.options.time_column),
        ties=job.options.ties,
        dropped={},
        notes={},
        event_types=counts.types,
    )
    content = Content(
        source=facts,
        users=pl.Series(names),
        lengths=lengths,
        items=table,
        event_types=counts.types,
        column=lambda name: [getattr(histories, name)],
        dropped=counts.dropped,
        duplicates=duplicates,
        first_time=int(histories.times.min()),
        order_key=True,
    )
    write.write_users(directory, content.users, lengths, histories.newest_times)
    write.write_items(directory, table)
    write.write_info(directory, describe(job.options, content) | {"shards": shards})


def _write_shards(
    directory: Path,
    job: _Job,
    counts: _Counts,
    table: pl.DataFrame,
    names: list[str],
    shards: int,
) -> int:
    """Write the record files; return the number of duplicate rows."""
    options, users, types = job.options, counts.users, counts.types
    ids = dict(zip(table["raw_id"].to_list(), table["id"].to_list(), strict=True))
    bounds = [names[i] for i in np.linspace(0, len(names), shards + 1).astype(int)[1:-1]]
    prefix = directory / "part"
    with beam.Pipeline(options=job.runner) as pipeline:
        (
            _read_events(pipeline, job)
            | beam.Filter(lambda e: e[0] in users and e[1][0] in ids)
            | "by user" >> beam.GroupByKey()
            | "records"
            >> beam.MapTuple(lambda user, events: _make_record(user, events, ids, types, options))
            | beam.Map(lambda record: (bisect_right(bounds, record[0]), record))
            | "by shard" >> beam.GroupByKey()
            | "shards"
            >> beam.MapTuple(lambda shard, found: _write_shard(directory, shard, shards, found))
            | beam.io.WriteToText(str(prefix))
        )
    return sum(int(line) for file in _take_lines(prefix) for line in file)


def _count_until_stable(directory: Path, job: _Job) -> _Counts:
    """Apply the filter rule; UserError if no event remains."""
    options = job.options
    lost_users: set[str] = set()
    lost_items: set[str] = set()
    dropped = {"min_item_count": 0, "min_user_events": 0}

    def count() -> dict[str, dict[str, int]]:
        prefix = directory / "count"
        with beam.Pipeline(options=job.runner) as pipeline:
            (
                _read_events(pipeline, job)
                | beam.Filter(lambda e: e[0] not in lost_users and e[1][0] not in lost_items)
                | beam.FlatMap(lambda e: [("user", e[0]), ("item", e[1][0]), ("type", e[1][2])])
                | beam.combiners.Count.PerElement()
                | beam.Map(json.dumps)
                | beam.io.WriteToText(str(prefix))
            )
        found: dict[str, dict[str, int]] = {"user": {}, "item": {}, "type": {}}
        for file in _take_lines(prefix):
            for line in file:
                (kind, name), number = json.loads(line)
                found[kind][name] = number
        return found

    def drop(counts: dict[str, int], threshold: str, lost: set[str]) -> bool:
        rare = {n: c for n, c in counts.items() if c < getattr(options, threshold)}
        lost.update(rare)
        dropped[threshold] += sum(rare.values())
        return bool(rare)

    while True:
        found = count()
        if drop(found["item"], "min_item_count", lost_items):
            found = count()
        if not drop(found["user"], "min_user_events", lost_users):
            break
    if not found["user"]:
        raise UserError(
            f"No event is left after --min_item_count={options.min_item_count} and "
            f"--min_user_events={options.min_user_events}; lower them."
        )
    return _Counts(found["user"], found["item"], sorted(found["type"].keys() - {""}), dropped)


def _take_lines(prefix: Path) -> Iterator[list[str]]:
    """Yield the lines of each file that a pipeline has written, and delete the file."""
    for file in sorted(prefix.parent.glob(f"{prefix.name}-*-of-*")):
        yield file.read_text().splitlines()
        file.unlink()


def _read_events(pipeline: beam.Pipeline, job: _Job) -> beam.PCollection:
    """Return (user, Event) of every row."""
    options = job.options
    return (
        pipeline
        | beam.Create(list(enumerate(job.paths)))
        | beam.Reshuffle()
        | beam.FlatMapTuple(lambda number, path: _read_file(options, number, path))
    )


def _read_file(options: PrepareOptions, number: int, path: str) -> Iterator[tuple[str, Event]]:
    row = number << _FILE_BITS
    for frame in interactions.load(dataclasses.replace(options, input=path)).frames():
        columns: list[Iterable] = [frame["user"], frame["item"], frame["timestamp"]]
        for name, default in (("event_type", ""), ("order", 0)):
            columns.append(frame[name] if name in frame.columns else [default] * frame.height)
        for user, item, time, kind, order in zip(*columns, strict=True):
            yield user, (item, time, kind, order, row)
            row += 1


def _make_record(
    user: str,
    events: Iterable[Event],
    ids: dict[str, int],
    types: list[str],
    options: PrepareOptions,
) -> Record:
    """Return the record of one user."""
    events = sorted(events, key=lambda event: event[4])
    names = sorted({event[0] for event in events}, key=ids.__getitem__)
    index = {name: i for i, name in enumerate(names)}
    table = {
        "user": np.zeros(len(events), np.int64),
        "item": np.array([index[event[0]] for event in events], np.int64),
        "time": np.array([event[1] for event in events], np.int64),
        "order": np.array([event[3] for event in events], np.int64),
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
    return user, next(encode_records(history)), duplicates


def _write_shard(directory: Path, shard: int, shards: int, found: Iterable[Record]) -> int:
    """Write a shard; return its number of duplicates.

    Beam may run a worker twice. So the file has a unique name until it is complete.
    """
    target = directory / shard_name(shard, shards)
    partial = target.with_suffix(f".{uuid.uuid4().hex}")
    found = sorted(found)
    write_records(partial, (record for _, record, _ in found))
    partial.rename(target)
    return sum(duplicates for *_, duplicates in found)
