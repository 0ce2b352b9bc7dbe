"""The preparation of `--source=interactions` as Apache Beam pipelines, for more than one machine.

Same options, same files, same content hash as `prepare.prepare`. Workers read whole input files, order
whole users and write whole shards; whoever starts the pipelines holds the ids of users and items with
their counts and, at the end, reads the result once to hash it. The filter rule is iterated, so counting
is a pipeline per round; the output directory must be visible to workers and driver (a shared disk).
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import numpy as np
import polars as pl

from rec2pm_jax.data import filters, prepare, writer
from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.data.histories import Histories
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.ordering import order_events
from rec2pm_jax.data.records import read_histories
from rec2pm_jax.data.schema import no_items
from rec2pm_jax.data.sources import interactions, tables
from rec2pm_jax.data.workspace import workspace
from rec2pm_jax.errors import UserError

_FILE_BITS = 40  # rows of a file that its number leaves room for


def prepare_with_beam(options: PrepareOptions, runner_options=None) -> dict:
    """Prepares a log; returns the contents of `dataset.json`.

    Args:
      runner_options: beam.options.pipeline_options.PipelineOptions; DirectRunner without.

    Raises:
      UserError: as `prepare.prepare`, or another source; errors of workers come wrapped.
    """
    if options.source != "interactions":
        raise UserError("Beam reads --source=interactions only; export the log to files.")
    if options.keep_dropped:
        raise UserError("Beam keeps no dropped events; leave --keep_dropped out.")
    prepare.check_options(options)
    options = dataclasses.replace(options, ties=options.ties or "shuffle")
    target = Path(options.output_dir)
    prepare.check_target(target, options.overwrite)
    if target.exists() and any(target.iterdir()) and not options.overwrite:
        raise UserError(f"{target} holds a dataset; add --overwrite or choose another directory.")
    paths = [str(p) for p in tables.input_files(options.input, options.source)]
    with workspace(target, prepare.identity(options) | {"beam": True}) as space:
        dataset = space.stage("dataset", lambda d: _write(d, options, paths, runner_options))
        space.publish(dataset)
    return prepare.read_info(target)


def _write(directory: Path, options: PrepareOptions, paths: list[str], runner_options) -> None:
    users, items, types, dropped = _filtered(directory, options, paths, runner_options)
    names = sorted(users)
    lengths = np.array([users[name] for name in names], np.int64)
    counts = pl.DataFrame({"item": list(items), "count": list(items.values())})
    table = filters.vocabulary(counts, no_items())
    ids = dict(zip(table["raw_id"].to_list(), table["id"].to_list(), strict=True))
    shards = writer.shard_count(len(names), int(lengths.sum()), options.shards)
    bounds = [names[i] for i in np.linspace(0, len(names), shards + 1).astype(int)[1:-1]]
    facts = directory / "part"
    with beam.Pipeline(options=runner_options) as pipeline:
        (
            _read(pipeline, options, paths)
            | beam.Filter(lambda e: e[0] in users and e[1][0] in ids)
            | "by user" >> beam.GroupByKey()
            | "records"
            >> beam.MapTuple(lambda user, events: _record(user, events, ids, types, options))
            | beam.Map(lambda record: (bisect_right(bounds, record[0]), record))
            | "by shard" >> beam.GroupByKey()
            | "shards"
            >> beam.MapTuple(lambda shard, found: _shard(directory, shard, shards, found))
            | beam.io.WriteToText(str(facts))
        )
    duplicates = sum(int(line) for file in _take(facts) for line in file)
    description = {"users": len(names), "shards": shards, "event_types": types}
    histories = read_histories(directory, description, names, lengths)
    facts = {
        "item_level": "item",
        "has_times": bool(options.time_column),
        "notes": {},
        "dropped": {},
    }
    info = prepare.describe(
        options,
        SimpleNamespace(facts=facts, ground_truth=None),
        SimpleNamespace(
            users=pl.Series(names), counts=lengths, items=table, event_types=types, dropped=dropped
        ),
        SimpleNamespace(
            duplicates=duplicates,
            order_key=True,
            first=int(histories.times.min()),
            column=lambda name: [getattr(histories, name)],
        ),
    )
    lasts = histories.times[histories.offsets[1:] - 1]
    writer.write_tables(directory, pl.Series(names), lengths, lasts, table, None)
    writer.write_info(directory, info | {"shards": shards})


def _filtered(directory: Path, options: PrepareOptions, paths: list[str], runner_options):
    """Events of each user and item that stays, the event types, and the events dropped."""
    lost_users: set[str] = set()
    lost_items: set[str] = set()
    dropped = {"min_item_count": 0, "min_user_events": 0}

    def count():
        prefix = directory / "count"
        with beam.Pipeline(options=runner_options) as pipeline:
            (
                _read(pipeline, options, paths)
                | beam.Filter(lambda e: e[0] not in lost_users and e[1][0] not in lost_items)
                | beam.FlatMap(lambda e: [("user", e[0]), ("item", e[1][0]), ("type", e[1][2])])
                | beam.combiners.Count.PerElement()
                | beam.Map(json.dumps)
                | beam.io.WriteToText(str(prefix))
            )
        found: dict[str, dict] = {"user": {}, "item": {}, "type": {}}
        for file in _take(prefix):
            for line in file:
                (kind, name), number = json.loads(line)
                found[kind][name] = number
        return found

    def drop(found, kind: str, threshold: str, lost: set[str]) -> int:
        rare = {n: c for n, c in found[kind].items() if c < getattr(options, threshold)}
        lost.update(rare)
        dropped[threshold] += sum(rare.values())
        return len(rare)

    while True:
        found = count()
        if drop(found, "item", "min_item_count", lost_items):
            found = count()
        if not drop(found, "user", "min_user_events", lost_users):
            break
    if not found["user"]:
        raise UserError(
            f"No event is left after --min_item_count={options.min_item_count} and "
            f"--min_user_events={options.min_user_events}; lower them."
        )
    return found["user"], found["item"], sorted(found["type"].keys() - {""}), dropped


def _take(prefix: Path) -> Iterator[list[str]]:
    """The lines of the files that a pipeline has written, which go."""
    for file in sorted(prefix.parent.glob(f"{prefix.name}-*-of-*")):
        yield file.read_text().splitlines()
        file.unlink()


def _read(pipeline, options: PrepareOptions, paths: list[str]):
    """(user, (item, time, type or "", order, row)) of every row."""
    return (
        pipeline
        | beam.Create(list(enumerate(paths)))
        | beam.Reshuffle()
        | beam.FlatMapTuple(lambda number, path: _rows(options, number, path))
    )


def _rows(options: PrepareOptions, number: int, path: str) -> Iterator[tuple]:
    row = number << _FILE_BITS
    for frame in interactions.load(dataclasses.replace(options, input=path)).frames():
        columns = [frame["user"], frame["item"], frame["timestamp"]]
        for name, default in (("event_type", ""), ("order", 0)):
            columns.append(frame[name] if name in frame.columns else [default] * frame.height)
        for user, *event in zip(*columns, strict=True):
            yield user, (*event, row)
            row += 1


def _record(user: str, events: Iterable, ids: dict, types: list[str], options: PrepareOptions):
    """(raw id, the record of its sequence, duplicates)."""
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
    own = np.array([ids[name] for name in names], np.int32)
    part = Histories(
        [user],
        np.array([0, len(events)]),
        own[table["item"]][rows],
        table["time"][rows],
        table["type"][rows] if types else None,
    )
    return user, next(writer.records(part)), duplicates


def _shard(directory: Path, shard: int, shards: int, found: Iterable) -> int:
    """Writes a shard, under a name of its own first as a worker may be tried twice; duplicates."""
    target = directory / writer.shard_name(shard, shards)
    partial = target.with_suffix(f".{uuid.uuid4().hex}")
    found = sorted(found)
    writer.write_records(partial, (record for _, record, _ in found))
    partial.rename(target)
    return sum(duplicates for *_, duplicates in found)
