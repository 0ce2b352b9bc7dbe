"""New logs for a prepared dataset, as deltas beside its files, and their compaction.

A delta is the directory `delta-NNNNN`: sequences of the users who have new events, and the whole item
table as it is then. The rules of `dataset.json` are frozen: filters, ties and seed. Item ids, user
indices and event-type ids stay; new ones follow, items of one log by descending count, users by raw
id. Users and items that are known stay whatever their counts; a new one must reach the threshold
within the log that is appended (events dropped earlier are not kept, so a full rebuild with filters
may know it sooner).

Late events, older than the last one of their user, go where their time puts them: a reader sees what
a rebuild from all logs would hold, except that ids go by first appearance. The same log appended
twice is two logs.

The content hash of a dataset with deltas is a hash of their hashes; compaction, which reads
everything into memory and writes plain shards, gives the hash of the content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data import prepare as prepare_lib
from rec2pm_jax.data import writer
from rec2pm_jax.data.dataset import merge_users, open_dataset, read_info
from rec2pm_jax.data.histories import content_hash
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.partitions import Known
from rec2pm_jax.data.workspace import workspace
from rec2pm_jax.errors import UserError

_BASE = ("content_hash", "users", "items", "events", "event_types", "has_times", "shards")


def append(options: PrepareOptions) -> dict:
    """Adds the log of `options` to the dataset in `options.output_dir`; returns its new description.

    Raises:
      UserError: no dataset there, a log of another kind, and as `prepare`.
    """
    target = Path(options.output_dir)
    info = read_info(target)
    dataset = open_dataset(target)
    rules = {**info["filters"], "ties": info["ties"]["rule"], "seed": info["ties"]["seed"]}
    del rules["rule"]
    options = dataclasses.replace(options, **rules)
    items = dataset.item_table
    known = Known(
        [dataset.user(i) for i in range(len(dataset))],
        items,
        dataset.event_types,
        dataset.has_times,
    )
    number = info.get("deltas", 0) + 1
    directory = target / f"delta-{number:05d}"
    # A delta that dataset.json does not name is what a kill left between the two.
    with workspace(
        directory, prepare_lib.identity(options) | {"base": info["content_hash"]}
    ) as space:
        delta, write = prepare_lib.run_stages(space, options, known)
        space.publish(space.stage("dataset", write))
    users = merge_users(
        pl.read_parquet(target / "users.parquet")
        if number == 1
        else pl.DataFrame({"user": known.users, "length": dataset.lengths}),
        pl.read_parquet(directory / "users.parquet"),
    )
    lengths = users["length"].to_numpy()
    chain = hashlib.sha256(f"{info['content_hash']} {delta['content_hash']}".encode())
    new = info | prepare_lib.length_facts(lengths)
    new |= {
        "base": info.get("base", {name: info[name] for name in _BASE}),
        "deltas": number,
        "items": delta["items"],
        "event_types": delta["event_types"],
        "order_key": info.get("order_key", False) or delta["order_key"],
        "time_origin": min(info["time_origin"], delta["time_origin"]),
        "duplicate_rows": info.get("duplicate_rows", 0) + delta["duplicate_rows"],
        "dropped_rows": {
            reason: info["dropped_rows"].get(reason, 0) + delta["dropped_rows"].get(reason, 0)
            for reason in info["dropped_rows"] | delta["dropped_rows"]
        },
        # Models trained on these still fit: no id has changed.
        "grown_from": [*info.get("grown_from", []), info["content_hash"]],
        "content_hash": chain.hexdigest(),
    }
    partial = target / f"{writer.INFO_FILE}.partial"
    partial.write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n")
    os.replace(partial, target / writer.INFO_FILE)
    return new


def compact(path: str) -> dict:
    """Rewrites a dataset with deltas as plain shards, ids as they are; returns its description."""
    target = Path(path)
    info = read_info(target)
    if not info.get("deltas"):
        raise UserError(f"{target} has no deltas; there is nothing to compact.")
    dataset = open_dataset(target)
    histories = dataset.histories
    plain = {name: value for name, value in info.items() if name not in ("base", "deltas")}
    plain["grown_from"] = [*info["grown_from"], info["content_hash"]]
    plain["content_hash"] = content_hash(
        histories.users,
        histories.lengths,
        lambda name: [getattr(histories, name)],
        dataset.item_table,
        info["event_types"],
        info["has_times"],
    )
    truth = target / "ground_truth.npz"

    def write(directory: Path) -> None:
        users, events = len(dataset), len(histories.ids)
        shards = writer.write_sequences(directory, [histories], users, events, progress=False)
        writer.write_tables(
            directory,
            pl.Series(histories.users),
            histories.lengths,
            dataset.item_table,
            dict(np.load(truth)) if truth.is_file() else None,
        )
        writer.write_info(directory, plain | {"shards": shards})

    with workspace(target, {"compact": info["content_hash"]}) as space:
        space.publish(space.stage("dataset", write))
    return read_info(target)
