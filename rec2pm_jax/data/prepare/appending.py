"""Append a log to a prepared dataset, as a delta beside its files.

A delta is the directory `delta-NNNNN`: sequences of the users who have new events, and the whole item
table after this log. The rules in `dataset.json` hold for it, too: filters, ties and seed. Item ids,
user indices and event-type ids stay. New ones follow, items of one log by descending count and users
by raw id. Known users and items stay whatever their counts.

Readers then see the same dataset as if all logs had been prepared at once, with three exceptions:

- The order of item ids and users differs. A title comes from the first log that names the item.
- With a filter above 1, new users and items must reach it within one log, because events dropped
  earlier are gone. `--keep_dropped` keeps these events, and so the same users, items and events.
- Where a user has events of one second in several logs, the earlier log comes first if ties are kept
  or if a key finer than seconds (milliseconds, an order column) decides.

Late events, older than the newest event of their user, are sorted in by time and counted as
`late_events`. These include kept events that come back. Duplicate rows are counted within a log. A log
that the dataset holds already is refused, whatever the order of its rows (`log_hash.py`).

The content hash of a dataset with deltas is a hash of their hashes. `compaction.py` computes the hash
of the content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.data.deltas import delta_paths, merge_users
from rec2pm_jax.data.histories import group_users
from rec2pm_jax.data.info import read_info
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import dropped_events
from rec2pm_jax.data.prepare.describe import describe_lengths
from rec2pm_jax.data.prepare.dropped_events import DroppedEvents
from rec2pm_jax.data.prepare.identity import make_identity
from rec2pm_jax.data.prepare.memory import MemoryLimit
from rec2pm_jax.data.prepare.partition import AppendTarget
from rec2pm_jax.data.prepare.run import PreparedLog, check_options, run_stages
from rec2pm_jax.data.prepare.workspace import open_workspace
from rec2pm_jax.data.prepare.write import replace_info, write_info
from rec2pm_jax.data.record_files import read_parts, read_table
from rec2pm_jax.errors import UserError

# What `dataset.json` keeps of the dataset before the first append, as the entry "base".
_BASE = ("content_hash", "users", "items", "events", "event_types", "has_times", "shards")
PREVIOUS_INFO = "previous.json"  # in a delta: dataset.json without it
_RECOUNTED = ("min_item_count", "min_user_events")  # filters that count kept events again


def append(options: PrepareOptions) -> dict:
    """Append the log of `options` to the dataset in `options.output_dir`.

    Args:
      options: as for `prepare`; filters, ties and seed are those of the dataset.

    Returns:
      The new contents of `dataset.json`.

    Raises:
      UserError: no dataset there, a log of another kind, another filter or rule than the dataset's,
        and as `prepare`.

    >>> import tempfile
    >>> from rec2pm_jax.data.prepare import prepare
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     log = f"{directory}/log.csv"
    ...     options = PrepareOptions("interactions", f"{directory}/data", log, progress=False)
    ...     for write, row in ((prepare, "ann,tea,60"), (append, "ann,milk,90")):
    ...         with open(log, "w") as file:
    ...             _ = file.write(f"user,item,timestamp\\n{row}\\n")
    ...         info = write(options)
    ...     dataset = open_dataset(f"{directory}/data")
    ...     ids = dataset.sequence(0).ids
    >>> info["deltas"], ids, dataset.items.titles
    (1, array([1, 2], dtype=int32), ['', 'tea', 'milk'])
    """
    path = Path(options.output_dir)
    with open_workspace(path) as space:
        info = read_info(path)  # under the lock, so that no other writer changes it meanwhile
        options = _adopt_rules(info, options)
        check_options(options)
        dataset = open_dataset(path)
        target = _read_target(dataset, options)
        space.claim(make_identity(options) | {"base": info["content_hash"]})
        run = run_stages(space, options, target)
        delta = run.info
        if delta["item_level"] != info["item_level"]:
            raise UserError(
                f"{path} has items that are {info['item_level']}, the new log has "
                f"{delta['item_level']}; append with the --item it was prepared with."
            )
        users = target.users.select("user", length=pl.Series(dataset.lengths))
        users = merge_users(users, run.users)
        number = info.get("deltas", 0) + 1
        new = _describe_with_delta(info, delta, number, users["length"].to_numpy())
        new["notes"] |= _note_twins(target, run)
        if options.keep_dropped:  # the kept events were counted again
            new["dropped_rows"] |= {name: delta["dropped_rows"][name] for name in _RECOUNTED}
        directory = path / f"delta-{number:05d}"
        # A kill may have left a delta that dataset.json does not name.
        shutil.rmtree(directory, ignore_errors=True)
        stage = space.stage("dataset", run.write)
        write_info(stage, info, PREVIOUS_INFO)
        stage.rename(directory)
        try:
            replace_info(path, new)
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
    return new


def undo_append(path: str) -> dict:
    """Remove the newest delta of a dataset.

    Args:
      path: the directory of the dataset.

    Returns:
      The contents of `dataset.json`, as they were before that log was appended.

    Raises:
      UserError: no dataset or no delta there, or a delta of version 0.1.
    """
    with open_workspace(Path(path)) as space:
        info = read_info(space.target)
        if not info.get("deltas"):
            raise UserError(
                f"{path} has no appended log, or was compacted; nothing can be removed."
            )
        newest = delta_paths(space.target, info["deltas"])[-1]
        file = newest / PREVIOUS_INFO
        if not file.is_file():
            raise UserError(f"{file} is missing; prepare the dataset again without that log.")
        replace_info(space.target, json.loads(file.read_text()))
        shutil.rmtree(newest, ignore_errors=True)
        return read_info(path)


def list_logs(path: str) -> str:
    """Return one line for each log that a dataset holds.

    Args:
      path: the directory of the dataset.

    Raises:
      UserError: no dataset there.
    """
    info = read_info(path)
    logs = info.get("logs", [])
    separate = info.get("deltas", 0)
    lines = []
    for number, log in enumerate(logs):
        place = number - (len(logs) - separate)
        where = f"delta-{place + 1:05d}" if place >= 0 else "base"
        lines.append(f"{where:<11} {log['rows']:>13,} rows  {log['hash'][:16]}  {log['input']}")
    return "\n".join(lines) or f"{path} was prepared by version 0.1, which kept no list of logs."


def _adopt_rules(info: dict, options: PrepareOptions) -> PrepareOptions:
    """Return `options` with the rules of the dataset; UserError if an option asks for another."""
    if options.source not in ("", info["source"]):
        raise UserError(
            f"--source={options.source}: {options.output_dir} was prepared from {info['source']}; "
            "append a log of the same source, or choose another --output_dir."
        )
    options = dataclasses.replace(options, source=info["source"])
    options = options.with_defaults(info.get("reading"))
    rules = {name: info["filters"][name] for name in _RECOUNTED}
    rules["keep_dropped"] = info["filters"].get("keep_dropped", False)
    rules |= {"ties": info["ties"]["rule"], "seed": info["ties"]["seed"]}
    for name, rule in rules.items():
        asked = getattr(options, name)
        if asked and asked != rule:
            raise UserError(
                f"--{name}={asked}: {options.output_dir} was prepared with {rule}, and appended logs "
                "follow; leave the flag out, or prepare all logs anew."
            )
    return dataclasses.replace(options, **rules)


def _read_target(dataset: Dataset, options: PrepareOptions) -> AppendTarget:
    """Read what the stages need to know of the dataset."""
    newest = delta_paths(dataset.path, dataset.info.get("deltas", 0))[-1:] or [dataset.path]
    dropped = None
    if options.keep_dropped:
        rows = sum(dataset.info["dropped_rows"].get(name, 0) for name in _RECOUNTED)
        dropped = DroppedEvents(newest[0] / dropped_events.DIRECTORY, rows)
    users = _read_newest_times(dataset, MemoryLimit.parse(options.max_memory).rows)
    return AppendTarget(
        users,
        dataset.item_table,
        dataset.event_types,
        dataset.has_times,
        (dataset.time_origin, int(users["last"].to_numpy().max())),
        dropped,
        frozenset(log["hash"] for log in dataset.info.get("logs", ())),
    )


def _read_newest_times(dataset: Dataset, rows: int) -> pl.DataFrame:
    """Return user and last, the time of the newest event, in the order of the dataset."""
    tables = [(dataset.path, dataset.info.get("base", dataset.info))]
    tables += [(d, read_info(d)) for d in delta_paths(dataset.path, dataset.info.get("deltas", 0))]
    found = []
    for path, info in tables:
        users = read_table(path, "users", info["users"])
        if "last" not in users.columns:  # datasets of version 0.1 may lack it
            names, lengths = users["user"].to_list(), users["length"].to_numpy()
            parts = read_parts(path, info, names, lengths, group_users(lengths, rows).ends)
            users = users.with_columns(last=pl.concat([pl.Series(p.newest_times) for p in parts]))
        found.append(users.select("user", "last"))
    return pl.concat(found).group_by("user", maintain_order=True).agg(pl.col("last").max())


def _note_twins(target: AppendTarget, run: PreparedLog) -> dict[str, str]:
    """Return a note about new ids that differ from known ones by a final .0 only."""
    notes = {}
    for name, known, found in (
        ("user", target.users["user"], run.users["user"]),
        ("item", target.items["raw_id"], run.partitioned.items["raw_id"]),
    ):
        known_ids = set(known.to_list())
        fresh = [text for text in found.to_list() if text not in known_ids]
        twins = [t for t in fresh if t.removesuffix(".0") in known_ids or f"{t}.0" in known_ids]
        if twins:
            notes[f"{name}_ids_twice"] = (
                f"{len(twins):,} new ids differ from known ones by .0 only, such as {twins[0]!r}; see "
                "--undo_append and --id_type=int"
            )
    return notes


def _describe_with_delta(info: dict, delta: dict, number: int, lengths: np.ndarray) -> dict:
    """Return `dataset.json` after one more delta.

    Args:
      info: `dataset.json` before.
      delta: that of the delta.
      number: how many deltas there are now.
      lengths: int [U], events of every user with the delta.
    """
    rows = {
        reason: info["dropped_rows"].get(reason, 0) + delta["dropped_rows"].get(reason, 0)
        for reason in info["dropped_rows"] | delta["dropped_rows"]
    }
    order_key = info.get("order_key", False) or delta["order_key"]
    # The merged sequences depend on these rules as well as on the parts.
    rules = [info["ties"]["rule"], info["ties"]["seed"], order_key]
    chain = hashlib.sha256(f"{info['content_hash']} {delta['content_hash']} {rules}".encode())
    return (
        info
        | describe_lengths(lengths)
        | {
            "base": info.get("base", {name: info[name] for name in _BASE}),
            "deltas": number,
            "items": delta["items"],
            "event_types": delta["event_types"],
            "order_key": order_key,
            "time_origin": min(info["time_origin"], delta["time_origin"]),
            "duplicate_rows": info.get("duplicate_rows", 0) + delta["duplicate_rows"],
            "logs": [*info.get("logs", ()), *delta["logs"]],
            "notes": info.get("notes", {}) | delta["notes"],  # what was read last counts
            "late_events": info.get("late_events", 0) + delta["late_events"],
            "dropped_rows": rows,
            # Models trained on these datasets still fit, because no id has changed.
            "grown_from": [*info.get("grown_from", []), info["content_hash"]],
            "content_hash": chain.hexdigest(),
        }
    )
