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
item, out of order) are counted on stderr at the end. States live as long as the process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from absl import flags

import rec2pm_jax
from launch import cli
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.engine import Engine, MemoryStore
from rec2pm_jax.stream.runner import run_stream

flags.DEFINE_string("workdir", None, "Directory of a training run.")
flags.DEFINE_string("events", None, "File of events and requests; - for standard input.")
flags.DEFINE_string("output", None, "File for the answers, written anew; - for standard output.")
flags.DEFINE_string("data", "", "Prepared dataset; by default the one the run was trained on.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.mark_flags_as_required(["workdir", "events", "output"])


@contextlib.contextmanager
def open_lines(path: str) -> Iterator[Iterator[bytes]]:
    """The lines of a file or of standard input, each handed over as it comes.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        file = sys.stdin.buffer if path == "-" else open(path, "rb")
    except OSError as error:
        raise UserError(f"--events={path} cannot be read ({error.strerror}).") from error
    with file:
        yield _lines(file, path)


def _lines(file: BinaryIO, path: str) -> Iterator[bytes]:
    while True:
        try:
            line = file.readline()
        except OSError as error:
            raise UserError(f"--events={path} cannot be read ({error.strerror}).") from error
        if not line:
            return
        yield line


@contextlib.contextmanager
def open_output(path: str, events: str) -> Iterator[Callable[[str], None]]:
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
    else:
        try:
            file = open(path, "wb", buffering=0)
        except OSError as error:
            raise UserError(f"--output={path} cannot be written ({error.strerror}).") from error
    with file:
        yield write


def main(_) -> None:
    args = flags.FLAGS
    with open_lines(args.events) as lines:
        recommender = rec2pm_jax.load(args.workdir, args.data or None, args.checkpoint)
        with open_output(args.output, args.events) as write:
            summary = run_stream(Engine(recommender, MemoryStore()), lines, write)
    print("\n".join(summary.lines()), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
