"""Where answers and metrics are written."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

from rec2pm_jax.errors import UserError
from rec2pm_jax.os_errors import write_error
from rec2pm_jax.stream.metrics import format_status
from rec2pm_jax.stream.outcomes import Answer

WriteLine = Callable[[str], None]
WriteRow = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def open_output(path: str, events: str, *, append: bool = False) -> Iterator[WriteLine]:
    """Open the file of answers.

    Args:
      path: a file, or - for standard output.
      events: path or address of the input, or -; the output must be neither it nor inside it.
      append: keep what the file holds; otherwise it is written anew.

    Yields:
      A function that writes one line, given without its break, and hands it to the system at once.

    Raises:
      UserError: the file cannot be written, or is part of the input.
    """
    if "-" not in (path, events) and "://" not in events:
        _check_outside(path, events)
    with _open_lines("--output", path, "ab" if append else "wb") as write:
        yield write


@contextlib.contextmanager
def open_metrics(path: str, show: bool) -> Iterator[WriteRow]:
    """Open where metrics are reported.

    Args:
      path: a file that rows are appended to as JSON lines; "" for none.
      show: keep a status line on stderr up to date.

    Yields:
      A function that takes a row of metrics, see `metrics.Meter.sample`.

    Raises:
      UserError: the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(_open_lines("--metrics", path, "ab")) if path else None

        def report(row: dict[str, Any]) -> None:
            if write:
                write(json.dumps(row))
            if show:
                print(f"\r\033[K{format_status(row)}", end="", file=sys.stderr, flush=True)

        yield report
        if show:
            print(file=sys.stderr)


def format_answer(answer: Answer) -> str:
    """Return an answer as one JSON line, without its break."""
    items = [{"item": r.item, "title": r.title, "score": r.score} for r in answer.items]
    fields = {"user": answer.user, "items": items, "events": answer.events}
    fields |= {"updates": answer.updates} | ({"popular": True} if answer.popular else {})
    fields |= {"wanted": answer.wanted} if len(items) < answer.wanted else {}
    return json.dumps(fields, ensure_ascii=False)


@contextlib.contextmanager
def _open_lines(flag: str, path: str, mode: str) -> Iterator[WriteLine]:
    """Open `path`, the value of `flag`, without a buffer; - is standard output."""

    name = f"{flag}={path}"

    def write(line: str) -> None:
        rest = memoryview(line.encode() + b"\n")
        try:
            while rest:
                rest = rest[file.write(rest) or 0 :]
        except OSError as error:
            raise write_error(name, error) from error

    file: IO[bytes]
    try:
        if path == "-":
            file = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
        else:
            file = open(path, mode, buffering=0)
    except OSError as error:
        raise write_error(name, error) from error
    try:
        yield write
    except BaseException:
        with contextlib.suppress(OSError):  # it must not hide the first error
            file.close()
        raise
    try:
        file.close()
    except OSError as error:
        raise write_error(name, error) from error


def _check_outside(path: str, events: str) -> None:
    """Raise UserError if the file `path` is the input `events`, or lies in it."""
    if os.path.exists(path) and os.path.samefile(path, events):
        raise UserError(f"--output={path} is the file of events; choose another.")
    if os.path.isdir(events) and os.path.realpath(path).startswith(os.path.realpath(events) + "/"):
        raise UserError(f"--output={path} lies in the directory of events; choose another place.")
