"""Keeps the memories of many users current from a stream of events, and answers requests.

    python -m launch.stream --workdir=runs/x --events=events.jsonl --output=answers.jsonl
    tail -f events.jsonl | python -m launch.stream --workdir=runs/x --events=- --output=-

Lines are JSON, in time order; events and requests may alternate:

    {"user": "7", "item": "42", "time": 1483271606, "type": "view"}    time and type are optional
    {"user": "7", "recommend": 10, "exclude": ["42"], "time": 1483271700}    the last two as well

Every request is answered at once, in input order, with all events before it applied:

    {"user": "7", "items": [{"item": "5", "title": "...", "score": 3.1}, ...], "events": 1,
     "updates": 0}

`events` counts the user's events, `updates` those times their memory was updated. A user without
events gets the most popular items. An event whose time lies before that of the user's last event is
dropped; events with equal times keep the order they arrive in. Skipped lines (malformed, unknown
item, out of order, far future, duplicate) are counted on stderr at the end.

    python -m launch.stream --workdir=runs/x --events=incoming --output=answers.jsonl \
        --store=users --memory=int8 --metrics=metrics.jsonl

With `--store` (a directory for LMDB, or redis://HOST:PORT/0) states outlive the process. Changed
users are committed every `--commit_s` seconds, in one transaction with how far each input file was
read: after a crash, a kill or a power cut the same command reads on from there, and every event of a
file counts exactly once; answers may be written twice, so `--output` is appended to. Standard input
cannot be read again: number each user's events upwards (`"seq": N`) and send what may be lost once
more. `--events=DIRECTORY` reads its *.jsonl files and what is appended to them until SIGTERM or
SIGINT, upon which everything is committed. A store is of one model and one format of memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from absl import flags

import rec2pm_jax
from rec2pm_jax import cli
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.codec import FORMATS
from rec2pm_jax.stream.engine import DAY, Engine, Options
from rec2pm_jax.stream.metrics import live_line
from rec2pm_jax.stream.process import configure_interpreter
from rec2pm_jax.stream.runner import Pace, run_stream
from rec2pm_jax.stream.sources import open_source
from rec2pm_jax.stream.store import MemoryStore, open_store

flags.DEFINE_string("workdir", None, "Directory of a training run.")
flags.DEFINE_string(
    "events",
    None,
    "File of events and requests, a directory of *.jsonl files, or - for standard input.",
)
flags.DEFINE_string(
    "output",
    None,
    "File for the answers, written anew (with a store: appended to); - for standard output.",
)
flags.DEFINE_string("data", "", "Prepared dataset; by default the one the run was trained on.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.DEFINE_string(
    "store", "", "Where states are kept: a directory or redis://..; empty: nowhere."
)
flags.DEFINE_enum("memory", "float32", FORMATS, "Format of a user's memory; int8 is a quarter.")
flags.DEFINE_float("commit_s", 1.0, "Seconds between commits.", 0.0)
flags.DEFINE_string("metrics", "", "File that gets a JSON line of metrics every second.")
flags.DEFINE_bool("progress", sys.stderr.isatty(), "Show the metrics on a live line.")
flags.DEFINE_float("expire_days", 0.0, "Forget users that had no event for so long; 0: never.", 0.0)
flags.DEFINE_float("max_ahead_s", DAY, "Refuse events that lie further in the future.", 0.0)
flags.DEFINE_integer("max_live", 200_000, "Users held in memory; the rest stays in the store.", 1)
flags.DEFINE_integer("sessions", 64, "Users whose last reads are kept for the next.", 0)
flags.DEFINE_string("worker", "0/1", "I/N: take the users of worker I out of N on one Redis.")
flags.mark_flags_as_required(["workdir", "events", "output"])


@contextlib.contextmanager
def open_output(path: str, events: str, mode: str = "wb") -> Iterator[Callable[[str], None]]:
    """A function that writes one line and hands it to the system at once.

    Raises:
      UserError: the file cannot be written, or is the input.
    """

    def write(line: str) -> None:
        rest = memoryview(line.encode() + b"\n")
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise UserError(f"--output={path} cannot be written ({error.strerror}).") from error

    if path == "-":
        file: BinaryIO = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    elif events != "-" and os.path.exists(path) and os.path.samefile(path, events):
        raise UserError(f"--output={path} is the file of events; choose another.")
    elif os.path.isdir(events) and os.path.realpath(path).startswith(
        os.path.realpath(events) + "/"
    ):
        raise UserError(f"--output={path} lies in the directory of events; choose another place.")
    else:
        try:
            file = open(path, mode, buffering=0)
        except OSError as error:
            raise UserError(f"--output={path} cannot be written ({error.strerror}).") from error
    with file:
        yield write


@contextlib.contextmanager
def open_metrics(path: str, shown: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that takes rows of metrics: to a file of JSON lines, and to a live line on stderr.

    Raises:
      UserError: the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(open_output(path, "-", "ab")) if path else None

        def report(row: dict[str, Any]) -> None:
            if write:
                write(json.dumps(row))
            if shown:
                print(f"\r\033[K{live_line(row)}", end="", file=sys.stderr, flush=True)

        yield report
        if shown:
            print(file=sys.stderr)


def stops_by_signal() -> Callable[[], bool]:
    """Whether SIGTERM or SIGINT has come since; a second one ends the process at once."""
    caught = []

    def stop(number, _):
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return lambda: bool(caught)


def _worker(text: str, store: str) -> str:
    parts = re.fullmatch(r"(\d+)/(\d+)", text)
    if not parts or int(parts[1]) >= int(parts[2]):
        raise UserError(f"--worker={text} must be I/N with 0 <= I < N, for example 0/4.")
    if parts[2] != "1" and not store.startswith("redis"):
        raise UserError(
            f"--worker={text}: several workers need a store that they share, redis://.."
        )
    return text


def main(_) -> None:
    args = flags.FLAGS
    worker = _worker(args.worker, args.store)
    stopped = stops_by_signal()
    options = Options(
        memory=args.memory,
        max_live=args.max_live,
        sessions=args.sessions,
        lifetime=int(args.expire_days * DAY),
        max_ahead=int(args.max_ahead_s),
        worker=worker,
    )
    with contextlib.ExitStack() as stack:
        if args.store:
            store = open_store(args.store, worker)
            stack.callback(store.close)
        else:
            store = MemoryStore()
            options = options._replace(max_live=sys.maxsize)
        source = open_source(args.events, store.marks())
        stack.callback(source.close)
        recommender = rec2pm_jax.load(args.workdir, args.data or None, args.checkpoint)
        engine = Engine(recommender, store, options)
        if args.store:  # it is there to stay, and no request should wait for the compiler
            engine.warm_up()
        configure_interpreter()
        mode = "ab" if args.store else "wb"
        write = stack.enter_context(open_output(args.output, args.events, mode))
        with open_metrics(args.metrics, args.progress) as report:
            pace = Pace(args.commit_s if args.store else float("inf"))
            summary = run_stream(engine, source, write, pace=pace, report=report, stopped=stopped)
    print("\n".join(summary.lines()), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
