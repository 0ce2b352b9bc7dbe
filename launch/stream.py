"""Keep the memories of many users current from a stream of events, and answer requests.

    python -m launch.stream --workdir=runs/x --events=events.jsonl --output=answers.jsonl
    tail -f events.jsonl | python -m launch.stream --workdir=runs/x --events=- --output=-

Lines are JSON, in time order; events and requests may alternate:

    {"user": "7", "item": "42", "time": 1483271606, "type": "view"}    time and type are optional
    {"user": "7", "recommend": 10, "exclude": ["42"], "time": 1483271700}    the last two as well

Every request is answered at once, in input order, with all events before it applied:

    {"user": "7", "items": [{"item": "5", "score": 3.1, ..}, ..], "events": 1, "updates": 0}

With `--store` states outlive the process, and the same command resumes after a crash:

    python -m launch.stream --workdir=runs/x --events=incoming --output=answers.jsonl \
        --store=users --memory=int8 --metrics=metrics.jsonl

docs/streaming.md describes filters, durability, several workers, metrics, and what is skipped.
"""

from __future__ import annotations

import contextlib
import sys

from absl import flags

from launch.configs.engine_flags import define_engine, get_options
from rec2pm_jax import cli
from rec2pm_jax.devices import describe_devices
from rec2pm_jax.stream.lines.output import open_metrics, open_output
from rec2pm_jax.stream.lines.sources import open_source
from rec2pm_jax.stream.opening import ModelPaths, open_engine
from rec2pm_jax.stream.process import configure_interpreter, watch_stop_signals
from rec2pm_jax.stream.runner import Intervals, run_stream
from rec2pm_jax.stream.stores.base import MemoryStore, open_store

define_engine(commit_s=1.0)
flags.DEFINE_string(
    "events", None, "File, directory of *.jsonl files, kafka://HOST:PORT/TOPIC, or - for stdin."
)
flags.DEFINE_string(
    "output", None, "File of the answers, new (with a store: appended to); - for standard output."
)
flags.DEFINE_bool(
    "in_order", False, "Have a request wait for all events before it, and not only for its user's."
)
flags.DEFINE_string("metrics", "", "File that gets a JSON line of metrics every second.")
flags.DEFINE_bool("progress", sys.stderr.isatty(), "Show the metrics on a status line.")
flags.mark_flags_as_required(["events", "output"])


def main(_: list[str]) -> None:
    args = flags.FLAGS
    durable = bool(args.store)
    options = get_options(args)
    intervals = Intervals(commit_s=args.commit_s if durable else float("inf"))
    stopped = watch_stop_signals()
    print(f"devices: {describe_devices()}", file=sys.stderr)
    paths = ModelPaths(args.workdir, args.data, args.checkpoint, args.items, args.devices)
    recommender = paths.load()
    with contextlib.ExitStack() as stack:
        store = open_store(args.store, options.worker.name) if durable else MemoryStore()
        stack.callback(store.close)
        source = open_source(args.events, store, options.worker)
        stack.callback(source.close)
        write = stack.enter_context(open_output(args.output, args.events, append=durable))
        report = stack.enter_context(open_metrics(args.metrics, args.progress))
        engine, items = open_engine(paths, recommender, store, options)
        if durable:  # it serves for long, and no request should wait for the compiler
            engine.warm_up()
        configure_interpreter()
        summary = run_stream(
            engine,
            source,
            write,
            items.poll,
            in_order=args.in_order,
            intervals=intervals,
            report=report,
            stopped=stopped,
        )
    report_lines = [*summary.format_report(), *items.notes(), *source.notes()]
    if summary.popular and not args.data:
        report_lines.append("--data=DIR lets its users start with their events there")
    print("\n".join(report_lines), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
