"""The flags of the commands that serve, `launch.stream` and `launch.serve`: model, store and engine."""

from __future__ import annotations

import sys
from typing import Any

from absl import flags

from rec2pm_jax import cli
from rec2pm_jax.methods.codec import FORMATS
from rec2pm_jax.stream.options import DAY_S, MAX_SECONDS, EngineOptions, parse_worker
from rec2pm_jax.stream.users.seen import SEEN_FORMATS


def define_engine(commit_s: float) -> None:
    """Define the flags.

    Args:
      commit_s: seconds between commits unless given.
    """
    flags.DEFINE_string("workdir", None, "Directory of a training run.")
    flags.DEFINE_string("data", "", "Prepared dataset whose users start with their events there.")
    flags.DEFINE_string("items", "", "Table of items, read again when it changes; needs content.")
    flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
    flags.DEFINE_string(
        "store", "", "Where states are kept: a directory or redis://..; empty: nowhere."
    )
    flags.DEFINE_enum("memory", "float32", FORMATS, "Format of a user's memory; int8 is a quarter.")
    flags.DEFINE_enum("seen", "none", SEEN_FORMATS, "What is kept of seen items, for exclude_seen.")
    flags.DEFINE_float("commit_s", commit_s, "Seconds between commits.", 0.0, MAX_SECONDS)
    flags.DEFINE_float(
        "expire_days", 0.0, "Forget users idle for so long; 0: never.", 0.0, MAX_SECONDS / DAY_S
    )
    flags.DEFINE_float(
        "max_ahead_s", DAY_S, "Reject events that lie further in the future; inf: none.", 0.0
    )
    cli.allow_infinity("max_ahead_s")
    flags.DEFINE_integer(
        "max_live", 200_000, "Users held in memory; the rest stays in the store.", 1
    )
    flags.DEFINE_integer("sessions", 64, "Users whose last reads are kept for the next.", 0)
    flags.DEFINE_integer(
        "devices", None, "Devices that a sharded item table is divided over; by default all.", 0
    )
    flags.DEFINE_string("worker", "0/1", "I/N: serve the users of worker I out of N on one Redis.")
    flags.mark_flag_as_required("workdir")


def get_options(args: Any) -> EngineOptions:
    """Return the engine's options that the flags name.

    Raises:
      UserError: --worker is malformed, or the store cannot be shared.
    """
    return EngineOptions(
        memory=args.memory,
        max_cached_users=args.max_live if args.store else sys.maxsize,
        sessions=args.sessions,
        lifetime_s=int(args.expire_days * DAY_S),
        max_ahead_s=args.max_ahead_s,
        worker=parse_worker(args.worker, args.store),
        seen=args.seen,
    )
