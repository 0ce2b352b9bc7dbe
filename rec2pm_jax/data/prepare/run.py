"""Run the stages of a preparation."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.event_order import TIE_RULES
from rec2pm_jax.data.info import INFO_FILE, read_info
from rec2pm_jax.data.item_table import add_item_table, read_item_table
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import dropped_events, encode, partition, write
from rec2pm_jax.data.prepare.describe import Content, describe
from rec2pm_jax.data.prepare.filters import Filters
from rec2pm_jax.data.prepare.identity import make_identity
from rec2pm_jax.data.prepare.limits import check_time_span
from rec2pm_jax.data.prepare.memory import MemoryLimit
from rec2pm_jax.data.prepare.order import OrderedLog, order_partitions
from rec2pm_jax.data.prepare.workspace import Workspace, open_workspace
from rec2pm_jax.data.sources import SOURCES
from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.os_errors import check_path

_SAME = ("content_hash", "filters", "ties", "order_key")  # entries of dataset.json


def prepare(options: PrepareOptions) -> tuple[dict, bool]:
    """Prepare a dataset.

    Memory is bounded by `options.max_memory`, apart from the raw ids of users and items and the
    memory of the source itself. After a kill, the same call resumes from its finished stages.

    Args:
      options: what to read, how to filter it and where to write it.

    Returns:
      The contents of `dataset.json`, and whether anything was written. False means that `output_dir`
      holds this very dataset already.

    Raises:
      UserError: unknown source or option, unreadable input, no event left after the filters, an
        output directory with other contents, or a full disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     log = f"{directory}/log.csv"
    ...     with open(log, "w") as file:
    ...         _ = file.write("uid,sku,ts\\nann,tea,60\\nann,milk,90\\nbob,tea,70\\n")
    ...     options = PrepareOptions(
    ...         source="interactions", input=log, output_dir=f"{directory}/data", progress=False,
    ...         user_column="uid", item_column="sku", time_column="ts",
    ...     )
    ...     info, written = prepare(options)
    >>> info["users"], info["items"], info["events"], written
    (2, 2, 3, True)
    """
    options = options.with_defaults()
    check_options(options)
    target = Path(options.output_dir)
    check_target(target, options.overwrite)
    with open_workspace(target, make_identity(options)) as space:
        run = run_stages(space, options)
        if target.exists() and _holds(target, run.info):
            return run.info, False
        return publish_dataset(space, run.write, options), True


def publish_dataset(
    space: Workspace, write: Callable[[Path], None], options: PrepareOptions
) -> dict:
    """Write a dataset to its directory, in the place of the one there.

    Args:
      space: the workspace of the directory.
      write: writes the files of the dataset to an empty directory.
      options: whether another dataset may be replaced.

    Returns:
      The contents of `dataset.json`.

    Raises:
      UserError: the directory holds another dataset and `options.overwrite` is false, or other files.
    """
    target = Path(options.output_dir)

    def check() -> None:
        check_target(target, options.overwrite)
        if target.exists() and any(target.iterdir()) and not options.overwrite:
            raise UserError(
                f"{target} already holds another dataset; choose another --output_dir or add "
                "--overwrite."
            )

    check()
    stage = space.stage("dataset", write)
    check()  # files may have come while the dataset was written
    space.publish(stage)
    return read_info(target)


@dataclasses.dataclass(frozen=True)
class PreparedLog:
    """A log after stages 1 to 3, ready to be written.

    Attributes:
      options: with the rule for ties that was applied.
      encoded, partitioned, ordered: the results of the stages.
      info: the contents of `dataset.json`, except for the number of shards.
    """

    options: PrepareOptions
    encoded: encode.EncodedLog
    partitioned: partition.PartitionedLog
    ordered: OrderedLog
    info: dict

    @property
    def users(self) -> pl.DataFrame:
        """The columns user and length, in the order of the log."""
        counts = self.ordered.users.counts.astype(np.int32)
        return pl.DataFrame({"user": self.ordered.users.names, "length": counts})

    def write(self, directory: Path) -> None:
        """Write the files of the dataset (stage 4).

        Raises:
          OSError: the disk is full.
        """
        log, options = self.ordered, self.options
        shards = write.write_sequences(directory, log, options.shards, options.progress)
        users = log.users
        write.write_users(directory, users.names, users.counts, log.newest_times())
        write.write_items(directory, self.partitioned.items)
        if self.encoded.ground_truth:
            shutil.copy(self.encoded.ground_truth, directory)
        if self.partitioned.dropped_events:
            kept = directory / dropped_events.DIRECTORY
            shutil.copytree(self.partitioned.dropped_events, kept)
        write.write_info(directory, {**self.info, "shards": shards})


def run_stages(
    space: Workspace, options: PrepareOptions, target: partition.AppendTarget | None = None
) -> PreparedLog:
    """Run stages 1 to 3, or find those that an earlier start has finished.

    Args:
      space: keeps finished stages after a kill.
      options: checked by `check_options`.
      target: the dataset that the log is appended to.

    Raises:
      UserError: as `prepare`, or the log is of another kind than `target`.
    """
    limit = MemoryLimit.parse(options.max_memory)
    # Read first: a wrong table is refused before a long log is read.
    table = read_item_table(options.items, options.id_type or "text") if options.items else None

    def encode_source(directory: Path) -> None:
        interactions = SOURCES[options.source](options)
        if table is not None:
            interactions = add_item_table(interactions, table)
        earlier = 0
        if target and target.dropped:
            interactions = target.dropped.prepend_to(interactions)
            earlier = target.dropped.rows
        encode.encode_log(interactions, directory, limit.rows, options.progress, earlier)

    log = encode.EncodedLog(space.stage("log", encode_source))
    facts = log.facts
    if target and (target.has_times, bool(target.event_types)) != (
        facts.has_times,
        bool(facts.event_types),
    ):
        raise UserError(
            f"{options.output_dir} and the new log differ in having real times or event types; append "
            "a log with the same columns."
        )

    if target and facts.log["hash"] in target.logs and not options.force:
        raise UserError(
            f"{options.output_dir} holds this log already ({facts.log['rows']:,} rows, see "
            "--list_appended); add --force to count it twice."
        )

    def partition_events(directory: Path) -> None:
        partition.partition_log(log, directory, Filters.of(options), limit, target)

    parts = partition.PartitionedLog(space.stage("parts", partition_events))
    log.events.remove()
    options = dataclasses.replace(options, ties=options.ties or facts.ties)
    ordered = order_partitions(parts, space, options.ties, options.seed, options.progress)
    known = target.time_range if target else []
    times = [*known, ordered.first_time, ordered.last_time]
    check_time_span(min(times), max(times), facts.has_times)
    content = Content(
        source=facts,
        users=parts.users.names,
        lengths=parts.users.counts,
        items=parts.items,
        event_types=parts.event_types,
        column=ordered.column,
        dropped=parts.dropped,
        duplicates=ordered.duplicates,
        first_time=ordered.first_time,
        order_key=ordered.order_key,
        ground_truth=log.ground_truth is not None,
    )
    info = describe(options, content)
    if target:
        info["late_events"] = ordered.count_late(target.users)
    return PreparedLog(options, log, parts, ordered, info)


def check_options(options: PrepareOptions) -> None:
    """Refuse options before anything is read.

    Raises:
      UserError: names the flag, and for names the nearest known one.
    """
    if options.source not in SOURCES:
        raise UserError(
            f"--source={options.source} is unknown; choose one of {', '.join(SOURCES)}."
            f"{nearest(options.source, SOURCES)}"
        )
    for path in (options.output_dir, options.input, options.items, options.download_dir):
        check_path(path)
    if options.shards < 0:
        raise UserError(f"--shards must be >= 0, got {options.shards}.")
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed must be from 0 to 2^63 - 1, got {options.seed}.")
    if options.ties and options.ties not in TIE_RULES:
        raise UserError(f"--ties={options.ties} is unknown; choose one of {', '.join(TIE_RULES)}.")
    Filters.of(options)
    MemoryLimit.parse(options.max_memory)


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse an output directory that holds anything but a prepared dataset.

    Raises:
      UserError: the target is a file, or a directory with other contents.
    """
    check_replaceable(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"--output_dir={target} is a file; choose a directory.")
    if any(target.iterdir()) and not (target / INFO_FILE).is_file():
        raise UserError(
            f"--output_dir={target} is not empty and holds no prepared dataset; choose another "
            "directory" + (" (--overwrite replaces prepared datasets only)." if overwrite else ".")
        )


def check_replaceable(target: Path) -> None:
    """Refuse the current directory and those above it, because a dataset is replaced as a whole.

    Raises:
      UserError: the target is one of them.
    """
    if Path.cwd().is_relative_to(Path(os.path.realpath(target))):
        raise UserError(
            f"--output_dir={target} is the current directory or above it; choose another directory, "
            "for example data/log."
        )


def _holds(target: Path, info: dict) -> bool:
    """Return whether a directory holds a dataset of this content, and of the rules for later logs."""
    try:
        found = read_info(target)
    except UserError:
        return False
    return all(found.get(name) == info[name] for name in _SAME)
