"""Preparation: a source's interactions become a dataset directory."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np

from rec2pm_jax.data import coding, dropped, filters, partitions, writer
from rec2pm_jax.data.dataset import FORMAT_VERSION, read_info
from rec2pm_jax.data.histories import content_hash
from rec2pm_jax.data.options import PrepareOptions, parse_bytes
from rec2pm_jax.data.ordering import TIE_RULES
from rec2pm_jax.data.sequences import Sequences, order_partitions
from rec2pm_jax.data.sources import SOURCES
from rec2pm_jax.data.splits import SPLIT_RULES
from rec2pm_jax.data.workspace import Workspace, workspace
from rec2pm_jax.errors import UserError, nearest

_LENGTH_QUANTILES = {"min": 0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1}
_MAX_ROWS = 4_000_000  # at a time; more brings no speed
_BYTES_PER_ROW = 1000  # of max_memory per row at a time, of which ordering takes most


def prepare(options: PrepareOptions) -> tuple[dict, bool]:
    """Prepares a dataset.

    Memory is bounded by `options.max_memory`, apart from the raw ids of users and items and whatever
    a source itself holds. A start that was killed goes on with its finished stages.

    Returns:
      The contents of `dataset.json`, and whether anything was written (false when `output_dir`
      already holds this very dataset).

    Raises:
      UserError: unknown source or option, unreadable input, nothing left after the filters, an
        output directory that holds something else, or a full disk.
    """
    check_options(options)
    target = Path(options.output_dir)
    check_target(target, options.overwrite)
    with workspace(target, identity(options)) as space:
        info, finished = run_stages(space, options)
        if target.exists() and _holds(target, info["content_hash"]):
            return info, False
        if target.exists() and any(target.iterdir()) and not options.overwrite:
            raise UserError(
                f"{target} already holds another dataset; choose another --output_dir or add "
                "--overwrite."
            )
        dataset = space.stage("dataset", finished)
        space.publish(dataset)
    return read_info(target), True


def run_stages(space: Workspace, options: PrepareOptions, known: partitions.Known | None = None):
    """Runs the stages; returns the description and what writes the dataset to a directory."""
    max_memory = parse_bytes(options.max_memory)
    rows = rows_within(max_memory)
    thresholds = (options.min_item_count, options.min_user_events)

    def encode(directory: Path) -> None:
        interactions = SOURCES[options.source](options)
        if known and known.dropped:
            interactions = dropped.before(known.dropped, known.dropped_rows, interactions)
        coding.encode(interactions, directory, rows, options.progress)

    log = coding.CodedLog(space.stage("log", encode))
    if known and (known.has_times, bool(known.event_types)) != (
        log.facts["has_times"],
        bool(log.event_types),
    ):
        raise UserError(
            f"{options.output_dir} and the new log differ in having real times or event types; append "
            "a log with the same columns."
        )
    parts = partitions.Partitions(
        space.stage(
            "parts",
            lambda d: partitions.deal(
                log, d, *thresholds, rows, max_memory, options.keep_dropped, known
            ),
        )
    )
    log.events.remove()
    ties = options.ties or log.facts["ties"]
    sequences = order_partitions(parts, space, ties, options.seed, options.progress)
    _check_times(sequences, log.facts["has_times"])
    info = describe(dataclasses.replace(options, ties=ties), log, parts, sequences)
    if known:
        info["late_events"] = sequences.late(known.users)

    def write(directory: Path) -> None:
        shards = writer.write_sequences(
            directory,
            sequences.parts(),
            info["users"],
            info["events"],
            options.shards,
            options.progress,
        )
        writer.write_tables(
            directory,
            parts.users,
            parts.counts,
            sequences.lasts(),
            parts.items,
            log.ground_truth,
        )
        if parts.dropped_events:
            shutil.copytree(parts.dropped_events, directory / dropped.DIRECTORY)
        writer.write_info(directory, {**info, "shards": shards})

    return info, write


def rows_within(max_memory: int) -> int:
    """Events to hold at a time."""
    return max(1, min(_MAX_ROWS, max_memory // _BYTES_PER_ROW))


def check_options(options: PrepareOptions) -> None:
    if options.source not in SOURCES:
        raise UserError(
            f"--source={options.source} is unknown; choose one of {', '.join(SOURCES)}."
            f"{nearest(options.source, SOURCES)}"
        )
    if options.shards < 0:
        raise UserError(f"--shards must be >= 0, got {options.shards}.")
    if options.ties and options.ties not in TIE_RULES:
        raise UserError(f"--ties={options.ties} is unknown; choose one of {', '.join(TIE_RULES)}.")
    filters.check_thresholds(options.min_item_count, options.min_user_events)
    parse_bytes(options.max_memory)


def identity(options: PrepareOptions) -> dict:
    """What must be equal for finished stages of a killed start to be used."""
    fields = dataclasses.asdict(options)
    for name in ("progress", "overwrite", "shards"):
        del fields[name]
    path = Path(options.input)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    stats = [(str(file), file.stat()) for file in files if options.input]
    return {
        "version": FORMAT_VERSION,
        "options": fields,
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }


def check_target(target: Path, overwrite: bool) -> None:
    """Refuses early, and never deletes a directory that is not a prepared dataset."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"--output_dir={target} is a file; choose a directory.")
    if any(target.iterdir()) and not (target / writer.INFO_FILE).is_file():
        raise UserError(
            f"--output_dir={target} is not empty and holds no prepared dataset; choose another "
            "directory" + (" (--overwrite replaces prepared datasets only)." if overwrite else ".")
        )


def _holds(target: Path, expected: str) -> bool:
    try:
        return read_info(target)["content_hash"] == expected
    except UserError:
        return False


def _check_times(sequences: Sequences, has_times: bool) -> None:
    first, last = sequences.first, sequences.last
    if has_times and last - first > np.iinfo(np.int32).max:
        raise UserError(
            f"Timestamps span {last - first} seconds, more than int32 holds (68 years): from "
            f"{first} to {last}. Are they in milliseconds? Convert them to seconds."
        )


def describe(
    options: PrepareOptions,
    log: coding.CodedLog,
    parts: partitions.Partitions,
    sequences: Sequences,
) -> dict:
    lengths = parts.counts
    event_types = parts.event_types
    return {
        "format_version": FORMAT_VERSION,
        "source": options.source,
        "item_level": log.facts["item_level"],
        "items": parts.items.height,
        **length_facts(lengths),
        "filters": {
            "min_item_count": options.min_item_count,
            "min_user_events": options.min_user_events,
            "keep_dropped": options.keep_dropped,
            "rule": filters.RULE,
        },
        "dropped_rows": {**log.facts["dropped"], **parts.dropped},
        "duplicate_rows": sequences.duplicates,
        "notes": log.facts["notes"],
        "ties": {"rule": options.ties, "seed": options.seed, "text": TIE_RULES[options.ties]},
        "order_key": sequences.order_key,
        "split_rules": list(SPLIT_RULES),
        "has_times": log.facts["has_times"],
        "time_origin": sequences.first,
        "event_types": event_types,
        "ground_truth": log.ground_truth is not None,
        "content_hash": content_hash(
            parts.users.to_list(),
            lengths,
            sequences.column,
            parts.items,
            event_types,
            log.facts["has_times"],
        ),
    }


def length_facts(lengths: np.ndarray) -> dict:
    """What `dataset.json` says about the lengths of histories."""
    return {
        "users": len(lengths),
        "events": int(lengths.sum()),
        "lengths": {
            name: int(np.quantile(lengths, q, method="inverted_cdf"))
            for name, q in _LENGTH_QUANTILES.items()
        },
        "users_with_one_event": int(np.sum(lengths == 1)),
    }


def summary(info: dict) -> str:
    """A few readable lines about a prepared dataset: what it holds, and by which rules."""
    lengths, filters = info["lengths"], info["filters"]
    gone = ", ".join(f"{n:,} by {reason}" for reason, n in info["dropped_rows"].items() if n)
    single, repeated, late = (
        info.get(name, 0) for name in ("users_with_one_event", "duplicate_rows", "late_events")
    )
    counting = max(filters["min_item_count"], filters["min_user_events"]) > 1
    by_log = counting and info.get("grown_from") and not filters.get("keep_dropped")
    lines = {
        f"{info['source']} ({info['item_level']})": f"{info['users']:,} users, "
        f"{info['items']:,} items, {info['events']:,} events",
        "events per user": f"median {lengths['median']:,}, 90 % {lengths['p90']:,}, "
        f"maximum {lengths['max']:,}",
        "users with a single event": single
        and f"{single:,}; kept, but neither trained on nor evaluated",
        "rows dropped": gone or "none",
        "duplicate rows": repeated and f"{repeated:,} repeat another in every column; kept",
        "late events": late
        and f"{late:,}, older than the newest of their user when they were appended; they go where "
        "their time puts them",
        "filters": by_log
        and "new users and items are counted within each appended log, as dropped events are gone "
        "(prepare with --keep_dropped to count over all logs)",
        **{name.replace("_", " "): note for name, note in info["notes"].items()},
        "ties": info["ties"]["text"],
        "content hash": info["content_hash"][:16],
    }
    return "\n".join(f"{name}: {text}" for name, text in lines.items() if text)
