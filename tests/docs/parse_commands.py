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
import re
import runpy
import sys
import warnings

from absl import app, flags

import rec2pm_jax.api  # noqa: F401  (imported once here, not in every fork)
from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict

_PLACEHOLDER = re.compile(r"--([\w.]+)=([A-Z_]+|.*[$<].*)")


def parse(module: str, arguments: list[str], complete: bool) -> str | None:
    """Parse one command line as the module itself does, and return what it complains of.

    Args:
      module: of the command, for example launch.train.
      arguments: its flags. Of a flag with a placeholder, such as --suite=NAME or --seed=$seed, only
        the name is checked.
      complete: whether required flags must be there.
    """
    placeholders = [m[1] for m in map(_PLACEHOLDER.fullmatch, arguments) if m]

    def stop_before_main(main, argv=None, flags_parser=None) -> None:
        rest = (flags_parser or flags.FLAGS)(sys.argv)
        if rest[1:]:
            sys.exit(f"unexpected argument {rest[1]!r}")
        for name in placeholders:
            if not _is_flag(name):
                sys.exit(f"unknown flag --{name}")

    app.run = stop_before_main
    if not complete or placeholders:
        flags.FlagValues.validate_all_flags = lambda self: None
    sys.argv = [module, *(a for a in arguments if not _PLACEHOLDER.fullmatch(a))]
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


def _is_flag(name: str) -> bool:
    if not name.startswith("config."):
        return name in flags.FLAGS
    _, section, field = name.split(".")
    return field in to_dict(Config()).get(section, {})


def in_fork(line: dict) -> str | None:
    """Return the result of `parse` in a separate process."""
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
