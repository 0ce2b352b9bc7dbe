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
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import filters, write
from rec2pm_jax.data.prepare.beam_workers import (
    make_record,
    read_file,
    report_file,
    write_shard,
)
from rec2pm_jax.data.prepare.describe import Content, describe
from rec2pm_jax.data.prepare.encode import SourceFacts
from rec2pm_jax.data.prepare.identity import make_identity
from rec2pm_jax.data.prepare.limits import check_event_types, check_time_span
from rec2pm_jax.data.prepare.log_hash import LogHash
from rec2pm_jax.data.prepare.run import check_options, check_target, publish_dataset
from rec2pm_jax.data.prepare.workspace import open_workspace
from rec2pm_jax.data.reading import log_files
from rec2pm_jax.data.reading.report import LogReport
from rec2pm_jax.data.record_files import read_histories
from rec2pm_jax.data.schema import empty_items
from rec2pm_jax.errors import UserError

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise UserError(
        f"--beam needs Apache Beam ({error}); run `pip install 'rec2pm_jax[beam]'`."
    ) from error


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
    options = options.with_defaults()
    for flag in ("items", "title_column", "category_column"):
        if getattr(options, flag):
            raise UserError(f"Beam reads no content of items; leave --{flag} out.")
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
    report, log = _read_reports(directory, job)
    options = job.options
    report.check(options.skip_invalid, options.max_invalid_share)
    job = dataclasses.replace(job, options=dataclasses.replace(options, skip_invalid=True))
    counts = _count_until_stable(directory, job)
    check_event_types(counts.types)
    names = sorted(counts.users)
    lengths = np.array([counts.users[name] for name in names], np.int64)
    table = filters.number_items(
        pl.DataFrame({"item": list(counts.items), "count": list(counts.items.values())}),
        empty_items(),
    )
    shards = write.count_shards(len(names), int(lengths.sum()), job.options.shards)
    duplicates, order_key = _write_shards(directory, job, counts, table, names, shards)
    partial_info = {"users": len(names), "shards": shards, "event_types": counts.types}
    histories = read_histories(directory, partial_info, names, lengths)
    facts = SourceFacts(
        item_level="item",
        has_times=bool(job.options.time_column),
        ties=job.options.ties,
        dropped=report.dropped(),
        notes=report.all_notes(),
        event_types=counts.types,
        log={"rows": log.rows, "hash": log.hex},
    )
    first, last = int(histories.times.min()), int(histories.times.max())
    check_time_span(first, last, facts.has_times)
    content = Content(
        source=facts,
        users=pl.Series(names),
        lengths=lengths,
        items=table,
        event_types=counts.types,
        column=lambda name: [getattr(histories, name)],
        dropped=counts.dropped,
        duplicates=duplicates,
        first_time=first,
        order_key=order_key,
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
) -> tuple[int, bool]:
    """Write the record files; return the number of duplicate rows, and whether a key ordered any."""
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
            >> beam.MapTuple(lambda user, events: make_record(user, events, ids, types, options))
            | beam.Map(lambda record: (bisect_right(bounds, record.user), record))
            | "by shard" >> beam.GroupByKey()
            | "shards"
            >> beam.MapTuple(lambda shard, found: write_shard(directory, shard, shards, found))
            | beam.Map(json.dumps)
            | beam.io.WriteToText(str(prefix))
        )
    found = [json.loads(line) for file in _take_lines(prefix) for line in file]
    return sum(duplicates for duplicates, _ in found), any(order_key for _, order_key in found)


def _read_reports(directory: Path, job: _Job) -> tuple[LogReport, LogHash]:
    """Read every file once; return what is found in all files, and the hash of the log.

    Raises:
      UserError: a file cannot be read, or files of several kinds, for example of two units of time.
    """
    prefix = directory / "report"
    with beam.Pipeline(options=job.runner) as pipeline:
        (
            pipeline
            | beam.Create(list(enumerate(job.paths)))
            | beam.Reshuffle()
            | beam.MapTuple(lambda number, path: [number, report_file(job.options, path)])
            | beam.Map(json.dumps)
            | beam.io.WriteToText(str(prefix))
        )
    found = sorted(json.loads(line) for file in _take_lines(prefix) for line in file)
    report, log = LogReport(), LogHash()
    for number, result in found:
        if "error" in result:
            raise UserError(result["error"])
        report.merge(job.paths[number], LogReport.from_dict(result["report"]))
        log += result["log"]
    return report, log


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
        | beam.FlatMapTuple(lambda number, path: read_file(options, number, path))
    )
