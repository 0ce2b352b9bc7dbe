"""Prepare a dataset from interaction logs, append logs to it, or compact it.

    python -m launch.prepare --list
    python -m launch.prepare --source=complete_journey --item=product_type --output_dir=data/types
    python -m launch.prepare --source=movielens --input=ml-1m/ratings.dat --output_dir=data/ml1m
    python -m launch.prepare --source=interactions --input=log.csv --user_column=uid \\
        --item_column=sku --time_column=ts --output_dir=data/log
    python -m launch.prepare --source=synthetic --output_dir=data/synthetic
    python -m launch.prepare --append --input=tuesday.csv --output_dir=data/log
    python -m launch.prepare --list_appended --output_dir=data/log
    python -m launch.prepare --undo_append --output_dir=data/log
    python -m launch.prepare --compact --output_dir=data/log
    python -m launch.prepare --beam --source=interactions --input="logs/*.csv" --output_dir=data/log
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from absl import flags

from launch.configs import log_flags
from rec2pm_jax import cli
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, compact, list_logs, prepare, summary, undo_append
from rec2pm_jax.data.sources import describe_sources

flags.DEFINE_string("source", None, "What to read; see --list.")
flags.DEFINE_boolean("list", False, "Print the datasets that can be read, and how to get them.")
flags.DEFINE_string("output_dir", None, "Directory of the prepared dataset.")
flags.DEFINE_string("input", "", "File (or directory) of the source.")
flags.DEFINE_string("item", "", "What an item is: product or product_type, track or artist, ..")
flags.DEFINE_integer("min_item_count", 0, "Drop items with fewer events.")
flags.DEFINE_integer("min_user_events", 0, "Drop users with fewer events.")
flags.DEFINE_boolean(
    "keep_dropped",
    False,
    "Keep the events that these drop beside the dataset, so that --append counts them, too.",
)
flags.DEFINE_string("ties", "", "Equal timestamps of a user: shuffle or keep; empty: by source.")
flags.DEFINE_integer("seed", 0, "Seed of the tie shuffle and of the synthetic source.", 0)
flags.DEFINE_integer("shards", 0, "Record files; 0 chooses by size.")
flags.DEFINE_string("max_memory", "4GiB", "Memory to use for events, e.g. 500MB or 4GiB.")
flags.DEFINE_boolean("overwrite", False, "Replace another prepared dataset in output_dir.")
flags.DEFINE_boolean("progress", True, "Show a progress bar.")
flags.adopt_module_key_flags(log_flags)
flags.DEFINE_integer("synthetic_users", 4000, "synthetic: users.")
flags.DEFINE_integer("synthetic_items", 400, "synthetic: items.")
flags.DEFINE_integer("synthetic_length", 80, "synthetic: events per user.")
flags.DEFINE_integer("synthetic_taste_events", 10, "synthetic: first events that show the taste.")
flags.DEFINE_string("variant", "", "Which of the downloads of a source, e.g. movielens: 25m.")
flags.DEFINE_string("download_dir", "", "Download what the licence allows into this directory.")
flags.DEFINE_boolean("append", False, "Add the log to the dataset in output_dir, as a delta.")
flags.DEFINE_boolean("force", False, "Append a log that the dataset holds already.")
flags.DEFINE_boolean("list_appended", False, "Print the logs of the dataset in output_dir.")
flags.DEFINE_boolean("undo_append", False, "Remove the newest appended log from output_dir.")
flags.DEFINE_boolean(
    "beam", False, "Run as Apache Beam pipelines (pip install 'rec2pm_jax[beam]')."
)
flags.DEFINE_string("beam_options", "", "Options of Beam's runner: --runner=FlinkRunner ..")
flags.DEFINE_boolean("compact", False, "Rewrite the dataset in output_dir without deltas.")


_WITHOUT_SOURCE = ["append", "compact", "list_appended", "undo_append"]


@flags.multi_flags_validator(
    ["source", "output_dir", "list", *_WITHOUT_SOURCE],
    message="Give --output_dir and --source (or a task for a dataset, such as --compact), or --list.",
)
def _names_a_task(values: dict[str, Any]) -> bool:
    if values["list"] or values["source"] == "help":
        return True
    named = values["source"] is not None or any(values[task] for task in _WITHOUT_SOURCE)
    return values["output_dir"] is not None and named


@flags.multi_flags_validator(
    ["beam", *_WITHOUT_SOURCE],
    message="Give one of --append, --compact, --list_appended, --undo_append and --beam at a time.",
)
def _names_one_task(values: dict[str, Any]) -> bool:
    return sum(values.values()) <= 1


def main(_: list[str]) -> None:
    """Run the task that the flags name, and print a summary of the dataset."""
    print(_run_task(flags.FLAGS))


def _run_task(args: flags.FlagValues) -> str:
    """Return what to print after the task that the flags name."""
    if args["list"].value or args.source == "help":
        return describe_sources()
    if args.list_appended:
        return list_logs(args.output_dir)
    if args.undo_append:
        return summary(undo_append(args.output_dir))
    if args.compact:
        return summary(compact(args.output_dir, args.max_memory, args.progress))
    fields = [field.name for field in dataclasses.fields(PrepareOptions)]
    values: dict[str, Any] = {name: args[name].value for name in fields}
    options = PrepareOptions(**values | {"source": args.source or ""})
    if args.append:
        return summary(append(options))
    if args.beam:
        from rec2pm_jax.data.prepare import beam  # Beam is optional

        runner = beam.PipelineOptions(shlex.split(args.beam_options))
        return summary(beam.prepare_with_beam(options, runner))
    info, written = prepare(options)
    place = f"{'written to' if written else 'already prepared in'} {options.output_dir}"
    return f"{summary(info)}\n{place}"


if __name__ == "__main__":
    cli.run(main)
