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

import rec2pm_jax
from rec2pm_jax import cli
from rec2pm_jax.devices import describe_devices
from rec2pm_jax.methods.codec import FORMATS
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.output import open_metrics, open_output
from rec2pm_jax.stream.lines.sources import open_source
from rec2pm_jax.stream.live_items import LiveItems
from rec2pm_jax.stream.options import DAY_S, MAX_SECONDS, EngineOptions, parse_worker
from rec2pm_jax.stream.process import configure_interpreter, watch_stop_signals
from rec2pm_jax.stream.rebuild import is_rebuilt
from rec2pm_jax.stream.runner import Intervals, run_stream
from rec2pm_jax.stream.stores.base import MemoryStore, open_store
from rec2pm_jax.stream.users.seen import SEEN_FORMATS

flags.DEFINE_string("workdir", None, "Directory of a training run.")
flags.DEFINE_string("events", None, "File, directory of *.jsonl, kafka://HOST:PORT/TOPIC, or -.")
flags.DEFINE_string(
    "output", None, "File of the answers, new (with a store: appended to); - for standard output."
)
flags.DEFINE_string("data", "", "Prepared dataset whose users start with their events there.")
flags.DEFINE_string("items", "", "Table of items, read again when it changes; needs content.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.DEFINE_string(
    "store", "", "Where states are kept: a directory or redis://..; empty: nowhere."
)
flags.DEFINE_enum("memory", "float32", FORMATS, "Format of a user's memory; int8 is a quarter.")
flags.DEFINE_enum("seen", "none", SEEN_FORMATS, "What is kept of seen items, for exclude_seen.")
flags.DEFINE_float("commit_s", 1.0, "Seconds between commits.", 0.0, MAX_SECONDS)
flags.DEFINE_string("metrics", "", "File that gets a JSON line of metrics every second.")
flags.DEFINE_bool("progress", sys.stderr.isatty(), "Show the metrics on a status line.")
flags.DEFINE_float(
    "expire_days", 0.0, "Forget users idle for so long; 0: never.", 0.0, MAX_SECONDS / DAY_S
)
flags.DEFINE_float(
    "max_ahead_s", DAY_S, "Reject events that lie further in the future; inf: none.", 0.0
)
cli.allow_infinity("max_ahead_s")
flags.DEFINE_integer("max_live", 200_000, "Users held in memory; the rest stays in the store.", 1)
flags.DEFINE_integer("sessions", 64, "Users whose last reads are kept for the next.", 0)
flags.DEFINE_string("worker", "0/1", "I/N: serve the users of worker I out of N on one Redis.")
flags.mark_flags_as_required(["workdir", "events", "output"])


def main(_: list[str]) -> None:
    args = flags.FLAGS
    durable = bool(args.store)
    options = EngineOptions(
        memory=args.memory,
        max_cached_users=args.max_live if durable else sys.maxsize,
        sessions=args.sessions,
        lifetime_s=int(args.expire_days * DAY_S),
        max_ahead_s=args.max_ahead_s,
        worker=parse_worker(args.worker, args.store),
        seen=args.seen,
    )
    intervals = Intervals(commit_s=args.commit_s if durable else float("inf"))
    stopped = watch_stop_signals()
    print(f"devices: {describe_devices()}", file=sys.stderr)
    recommender = rec2pm_jax.load(args.workdir, args.data or None, args.checkpoint)
    with contextlib.ExitStack() as stack:
        store = open_store(args.store, options.worker.name) if durable else MemoryStore()
        stack.callback(store.close)
        # A rebuilt store holds all users of its dataset; those it lacks have been forgotten.
        known = not is_rebuilt(store) and bool(args.data)
        source = open_source(args.events, store, options.worker)
        stack.callback(source.close)
        write = stack.enter_context(open_output(args.output, args.events, append=durable))
        report = stack.enter_context(open_metrics(args.metrics, args.progress))
        engine = Engine(recommender, store, options._replace(known_users=known))
        items = LiveItems(args.items, recommender, store)
        engine.replace_items(items.recommender)
        if durable:  # it serves for long, and no request should wait for the compiler
            engine.warm_up()
        if known and recommender.dataset is not None:
            recommender.dataset.sequence(0)  # read the histories now, not at the first request
        configure_interpreter()
        summary = run_stream(
            engine, source, write, items.poll, intervals=intervals, report=report, stopped=stopped
        )
    report_lines = [*summary.format_report(), *items.notes(), *source.notes()]
    if summary.popular and not args.data:
        report_lines.append("--data=DIR lets its users start with their events there")
    print("\n".join(report_lines), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
