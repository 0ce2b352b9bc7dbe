"""How every launch command starts: user errors become one line on stderr and exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Callable

from absl import app, flags

from rec2pm_jax.errors import UserError


def run(main: Callable) -> None:
    """Runs `main(argv)` under absl; bad flags and `UserError`s are reported without a traceback."""

    def guarded(argv):
        try:
            return main(argv)
        except UserError as error:
            _fail(error)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(error)


def _fail(error: Exception) -> None:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(1)
