"""How every launch command starts: user errors become one line on stderr and exit code 1."""

from __future__ import annotations

import logging as standard_logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict, to_dict
from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.train.preemption import Preempted

STOPPED = 75  # exit code of a run that was asked to stop, has saved, and can be continued

_CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

flags.DEFINE_string(
    "compilation_cache",
    # JAX's own variable, or a folder of ours among the user's caches.
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(_CACHES / "rec2pm_jax")),
    "Directory of compiled programs, shared by runs; empty for none.",
)


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in `directory`, so that only a first start compiles; empty: nowhere."""
    jax.config.update("jax_compilation_cache_dir", directory or None)
    # JAX leaves out what compiles within a second; a start has dozens of such programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def run(main: Callable[[list[str]], None]) -> None:
    """Runs `main(argv)` under absl; bad flags and `UserError`s are reported without a traceback."""

    def guarded(argv):
        try:
            if len(argv) > 1:
                raise UserError(f"Unexpected argument {argv[1]!r}; flags are --name=value.")
            use_compilation_cache(flags.FLAGS.compilation_cache)
            return main(argv)
        except Preempted as stopped:
            print(stopped, flush=True)
            sys.exit(STOPPED)
        except UserError as error:
            _fail(error)

    # Orbax reports every phase of a save, and warns of every directory it only reads;
    # --verbosity=0 brings that back. Our own warnings stay.
    logging.set_verbosity(logging.ERROR)
    standard_logging.getLogger("rec2pm_jax").setLevel(standard_logging.WARNING)
    app.run(guarded, flags_parser=_parse)


def define_config(
    flag_values: flags.FlagValues | None = None, sys_argv: list[str] | None = None
) -> None:
    """Defines the required flag `--config=FILE` with its overrides `--config.section.field=value`.

    The file is Python and defines `get_config() -> ml_collections.ConfigDict`, as the presets in
    `launch/configs/` do.

    Args:
      flag_values: where to define it; the process's flags unless given.
      sys_argv: where to look for overrides; the command line unless given.
    """
    flag_values = flags.FLAGS if flag_values is None else flag_values
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Preset, for example launch/configs/base.py.",
        flag_values=flag_values,
        sys_argv=sys_argv,
    )
    flags.mark_flag_as_required("config", flag_values=flag_values)


def get_config() -> Config:
    """The validated configuration of `--config` and its overrides, once flags are parsed.

    Raises:
      UserError: a field is unknown, of the wrong type or out of range.
    """
    return from_dict(flags.FLAGS["config"].value.to_dict())


def define_only(what: str) -> None:
    """Defines `--only=REGEX`, which picks some of the things called `what` by their names."""

    def compiles(pattern: str) -> bool:
        try:
            re.compile(pattern)
        except re.error as error:
            raise flags.ValidationError(f"is no regular expression ({error})") from error
        return True

    flags.DEFINE_string("only", "", f"Regular expression that names of {what} must contain.")
    flags.register_validator("only", compiles)


def _parse(argv: list[str]) -> list[str]:
    try:
        if "config" in flags.FLAGS:
            _check_config_flags(argv)
        return flags.FLAGS(argv)
    except (flags.Error, UserError) as error:
        _fail(error)


def _check_config_flags(argv: list[str]) -> None:
    """Refuses a missing preset and unknown fields, which config_flags would meet with a traceback.

    Raises:
      UserError: names the file, or the field and the nearest known one.
    """
    known = [
        f"{section}.{field}" for section, fields in to_dict(Config()).items() for field in fields
    ]
    for i, argument in enumerate(argv):
        field = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if field and field[1] not in known:
            raise UserError(f"Unknown config field {field[1]}.{nearest(field[1], known)}")
        preset = re.match(r"--?config(?:=(.*))?$", argument)
        if preset:
            path = preset[1] if preset[1] is not None else "".join(argv[i + 1 : i + 2])
            if not Path(path.split(":")[0]).is_file():
                raise UserError(f"--config={path}: there is no such file.{_nearest_preset(path)}")


def _nearest_preset(path: str) -> str:
    folder = Path(__file__).parent / "configs"
    names = {p.stem: p for p in folder.glob("*.py") if not p.stem.startswith("_")}
    return nearest(Path(path).stem, names) or f" Presets: {', '.join(sorted(names))}."


def _fail(error: Exception) -> None:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(1)
