"""Parses command lines of `launch` without running them: flags, presets and values.

Reads [{"module", "arguments", "complete"}, ..] as JSON from standard input and writes a list of
errors, null where a line parses. Every line is parsed in a fork, since commands define flags of the
same names.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import warnings

from absl import app, flags

import rec2pm_jax.api  # noqa: F401  (imported once here, not in every fork)


def parse(module: str, arguments: list[str], complete: bool) -> str | None:
    """Parse one command line as the module itself does, and return what it complains of.

    Args:
      module: of the command, for example launch.train.
      arguments: its flags.
      complete: whether required flags must be there.
    """

    def stop_before_main(main, argv=None, flags_parser=None) -> None:
        rest = (flags_parser or flags.FLAGS)(sys.argv)
        if rest[1:]:
            sys.exit(f"unexpected argument {rest[1]!r}")

    app.run = stop_before_main
    if not complete:
        flags.FlagValues.validate_all_flags = lambda self: None
    sys.argv = [module, *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        if stopped.code not in (None, 0):
            return f"{said.getvalue().strip()} {stopped.code}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def in_fork(line: dict) -> str | None:
    """Return the result of `parse` in a process of its own."""
    read, write = os.pipe()
    if os.fork() == 0:
        with open(write, "w") as pipe:
            json.dump(parse(**line), pipe)
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        answer = pipe.read()
    os.wait()
    return json.loads(answer) if answer else "the parser died"


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="os.fork")
    print(json.dumps([in_fork(line) for line in json.load(sys.stdin)]))
