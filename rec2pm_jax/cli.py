"""Start of every launch command: parse flags, report user errors in one line, set the exit code."""

from __future__ import annotations

import contextlib
import errno
import logging as standard_logging
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging

from rec2pm_jax.devices import find_devices
from rec2pm_jax.errors import UserError
from rec2pm_jax.os_errors import CANNOT_WRITE, NO_ROOM, check_path, write_error
from rec2pm_jax.training.preemption import EXIT_PREEMPTED, Preempted

EXIT_INTERRUPTED = 130  # as shells report SIGINT
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
_LONGEST_WORD = 500  # characters of a message, such as a path; longer ones are cut
_MAY_BE_INFINITE: set[str] = set()  # flags

for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # closed; a file that is opened would take its number
        setattr(sys, _name, open(os.devnull, "w"))

_CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

flags.DEFINE_string(
    "compilation_cache",
    # JAX's own variable, or our folder among the user's caches.
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(_CACHES / "rec2pm_jax")),
    "Directory of compiled programs, shared by runs; empty for none.",
)


def run(main: Callable[[list[str]], None]) -> None:
    """Run `main(argv)` under absl; report bad flags and `UserError`s without a traceback.

    The process exits with 0, with 1 after an error, or with `EXIT_PREEMPTED` after a preemption.

    Args:
      main: the command, called once flags are parsed.
    """

    # Orbax logs every phase of a save and warns of every directory that it only reads.
    # --verbosity=0 brings those lines back. Warnings of this package stay.
    logging.set_verbosity(logging.ERROR)
    standard_logging.getLogger("rec2pm_jax").setLevel(standard_logging.WARNING)
    try:
        try:
            app.run(guard(main), flags_parser=parse_flags)
        finally:
            sys.stdout.flush()  # here, as an error while the interpreter ends cannot be caught
    except BrokenPipeError:
        _drop_output()
        _fail("The reader of this command's output has closed it, so the command ended.")


def guard(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """Return `main` with one line for each error that a user can put right.

    Args:
      main: the command, called once flags are parsed.
    """

    def guarded(argv: list[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(f"Unexpected argument {argv[1]!r}; flags are --name=value.")
            use_compilation_cache(flags.FLAGS.compilation_cache)
            return main(argv)
        except Preempted as stopped:
            print(stopped, flush=True)
            sys.exit(EXIT_PREEMPTED)
        except UserError as error:
            _fail(error)
        except KeyboardInterrupt:
            _fail("Interrupted.", EXIT_INTERRUPTED)
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            _fail(_describe_os_error(error))
        except (AssertionError, RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError):
                _check_devices()
            if not isinstance(error, MemoryError) and _OUT_OF_MEMORY not in str(error):
                raise
            _fail(
                f"Out of memory ({(str(error).splitlines() or ['no more is known'])[0][:200]}): "
                "use a smaller batch or model, or more micro-batches (compute.accumulate)."
            )

    return guarded


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags of a command line and return the rest; exit with one line if they are bad.

    Args:
      argv: the command line, program name first.

    Returns:
      The program name and all arguments that are not flags.
    """
    try:
        rest = flags.FLAGS(argv)
        for name, value in flags.FLAGS.flag_values_dict().items():
            _check_value(name, value)
        return rest
    except (flags.Error, UserError) as error:
        _fail(error)


def allow_infinity(name: str) -> None:
    """Let the float flag `name` be `inf`, where that means that there is no limit."""
    _MAY_BE_INFINITE.add(name)


def _check_value(name: str, value: object) -> None:
    """Refuse a value that no flag can have."""
    if name in _MAY_BE_INFINITE and value == math.inf:
        return
    if isinstance(value, float) and not abs(value) < 1e30:  # true of nan, too
        raise UserError(f"--{name}={value} must be a finite number below 1e30.")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"--{name}={value} must fit 64 bits.")
    texts = value if isinstance(value, list) else [value]
    if any("\0" in text for text in texts if isinstance(text, str)):
        raise UserError(f"--{name} holds a NUL character; leave it out.")


def define_only(what: str) -> None:
    """Define `--only=REGEX`, which selects things by their names.

    Args:
      what: what is selected, as the help text calls it.
    """

    def compiles(pattern: str) -> bool:
        try:
            re.compile(pattern)
        except re.error as error:
            raise flags.ValidationError(f"is no regular expression ({error})") from error
        return True

    flags.DEFINE_string("only", "", f"Regular expression that names of {what} must contain.")
    flags.register_validator("only", compiles)
    # So that --help of the command shows it, although this module defines it.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["only"])


def use_compilation_cache(directory: str) -> None:
    """Keep compiled programs in a directory, so that only the first start compiles.

    Args:
      directory: where to keep them; empty: nowhere.

    Raises:
      UserError: no file can have that path, of which JAX would warn at every program.
    """
    if directory:
        check_path(directory)
    jax.config.update("jax_compilation_cache_dir", directory or None)
    # By default JAX does not keep programs that compile within a second; a start has dozens.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _check_devices() -> None:
    """Fail if the error in hand is that JAX has no devices."""
    try:
        find_devices()
    except UserError as error:
        _fail(error)


def _describe_os_error(error: OSError) -> str:
    if error.errno in NO_ROOM:
        return str(write_error(error.filename or "the disk", error))
    if error.errno == errno.ENAMETOOLONG and (name := _find_flag(str(error.filename))):
        return f"--{name}: the path is too long for a file system ({error.filename})."
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."


def _find_flag(path: str) -> str:
    """Return the flag with the longest value that a path contains; "" if there is none."""
    values = flags.FLAGS.flag_values_dict()
    found = {n: len(v) for n, v in values.items() if isinstance(v, str) and v and v in path}
    return max(found, key=lambda name: found[name], default="")


def _drop_output() -> None:
    """Send what is left of the output nowhere: the interpreter writes it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: Exception | str, code: int = 1) -> NoReturn:
    with contextlib.suppress(BrokenPipeError):
        words = (w if len(w) <= _LONGEST_WORD else f"{w[:100]}.." for w in str(error).split())
        print("error: " + " ".join(words), file=sys.stderr)
    sys.exit(code)
