"""New logs for a prepared dataset, as deltas beside its files.

A delta is the directory `delta-NNNNN`: sequences of the users who have new events, and the whole item
table as it is then. The rules of `dataset.json` are frozen: filters, ties and seed. Item ids, user
indices and event-type ids stay; new ones follow, items of one log by descending count, users by raw
id. Users and items that are known stay whatever their counts.

What a reader then sees is what a preparation of all logs at once would hold, up to the order of ids,
titles (those of the log that named an item first) and this:

- Without thresholds, or with `--keep_dropped`, the same users, items and events. (More events never
  take an item or a user out again, so what is known would be kept by the rebuild, too.) With thresholds
  above 1 and without `--keep_dropped`, new users and items must reach them within the appended log,
  as events dropped earlier are gone; the summary says so.
- The same order of events, unless one user has events of one second in several logs and ties are kept
  or a finer key than seconds (milliseconds, an order column) decides: then the earlier log comes first.

Late events, older than the newest one their user had, go where their time puts them and are counted as
`late_events` (events that come back after having been dropped among them). The same log appended twice
is two logs. Duplicate rows are counted within a log.

The content hash of a dataset with deltas is a hash of their hashes (`compact.py` gives the hash of the
content).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data import dropped
from rec2pm_jax.data import prepare as prepare_lib
from rec2pm_jax.data.dataset import Dataset, delta_paths, merge_users, open_dataset, read_info
from rec2pm_jax.data.options import PrepareOptions, parse_bytes
from rec2pm_jax.data.partitions import Known, divide
from rec2pm_jax.data.records import read_parts, read_table
from rec2pm_jax.data.workspace import recover, workspace
from rec2pm_jax.data.writer import INFO_FILE
from rec2pm_jax.errors import UserError

_BASE = ("content_hash", "users", "items", "events", "event_types", "has_times", "shards")
_RECOUNTED = ("min_item_count", "min_user_events")


def append(options: PrepareOptions) -> dict:
    """Adds the log of `options` to the dataset in `options.output_dir`; returns its new description.

    Raises:
      UserError: no dataset there, a log of another kind, and as `prepare`.
    """
    target = Path(options.output_dir)
    recover(target)
    info = read_info(target)
    prepare_lib.check_options(options)
    options = _with_rules_of(info, options)
    keep = options.keep_dropped
    dataset = open_dataset(target)
    newest = delta_paths(target, info.get("deltas", 0))[-1:] or [target]
    known = Known(
        _known_users(dataset, prepare_lib.rows_within(parse_bytes(options.max_memory))),
        dataset.item_table,
        dataset.event_types,
        dataset.has_times,
        newest[0] / dropped.DIRECTORY if keep else None,
        sum(info["dropped_rows"].get(name, 0) for name in _RECOUNTED),
    )
    number = info.get("deltas", 0) + 1
    directory = target / f"delta-{number:05d}"
    # A delta that dataset.json does not name is what a kill left between the two.
    with workspace(
        directory, prepare_lib.identity(options) | {"base": info["content_hash"]}
    ) as space:
        delta, write = prepare_lib.run_stages(space, options, known)
        if delta["item_level"] != info["item_level"]:
            raise UserError(
                f"{target} has items that are {info['item_level']}, the new log has "
                f"{delta['item_level']}; append with the --item it was prepared with."
            )
        space.publish(space.stage("dataset", write))
        new = _described(info, delta, number, _lengths(dataset, known, directory, delta))
        if keep:  # what was dropped was counted again
            new["dropped_rows"] |= {name: delta["dropped_rows"][name] for name in _RECOUNTED}
        partial = target / f"{INFO_FILE}.partial"
        partial.write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n")
        os.replace(partial, target / INFO_FILE)
    return new


def _with_rules_of(info: dict, options: PrepareOptions) -> PrepareOptions:
    """`options` with the frozen rules; UserError where one asks for another."""
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


def _known_users(dataset: Dataset, rows: int) -> pl.DataFrame:
    """user and last, the time of the newest event, in the order of the dataset."""
    tables = [(dataset.path, dataset.info.get("base", dataset.info))]
    tables += [(d, read_info(d)) for d in delta_paths(dataset.path, dataset.info.get("deltas", 0))]
    found = []
    for path, info in tables:
        users = read_table(path, "users", info["users"])
        if "last" not in users.columns:  # prepared before this was noted
            names, lengths = users["user"].to_list(), users["length"].to_numpy()
            parts = read_parts(path, info, names, lengths, divide(lengths, rows)[0][1:])
            last = [pl.Series(part.times[part.offsets[1:] - 1]) for part in parts]
            users = users.with_columns(last=pl.concat(last))
        found.append(users.select("user", "last"))
    return pl.concat(found).group_by("user", maintain_order=True).agg(pl.col("last").max())


def _lengths(dataset: Dataset, known: Known, directory: Path, delta: dict) -> np.ndarray:
    """Events per user with the delta in `directory`."""
    users = known.users.select("user", length=pl.Series(dataset.lengths))
    return merge_users(users, read_table(directory, "users", delta["users"]))["length"].to_numpy()


def _described(info: dict, delta: dict, number: int, lengths: np.ndarray) -> dict:
    """`dataset.json` with one delta more."""
    rows = {
        reason: info["dropped_rows"].get(reason, 0) + delta["dropped_rows"].get(reason, 0)
        for reason in info["dropped_rows"] | delta["dropped_rows"]
    }
    chain = hashlib.sha256(f"{info['content_hash']} {delta['content_hash']}".encode())
    return (
        info
        | prepare_lib.length_facts(lengths)
        | {
            "base": info.get("base", {name: info[name] for name in _BASE}),
            "deltas": number,
            "items": delta["items"],
            "event_types": delta["event_types"],
            "order_key": info.get("order_key", False) or delta["order_key"],
            "time_origin": min(info["time_origin"], delta["time_origin"]),
            "duplicate_rows": info.get("duplicate_rows", 0) + delta["duplicate_rows"],
            "late_events": info.get("late_events", 0) + delta["late_events"],
            "dropped_rows": rows,
            # Models trained on these still fit: no id has changed.
            "grown_from": [*info.get("grown_from", []), info["content_hash"]],
            "content_hash": chain.hexdigest(),
        }
    )
