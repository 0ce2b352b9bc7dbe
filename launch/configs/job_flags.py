"""The flags that make a command one process of a job, see `training.distributed`."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from absl import flags

from rec2pm_jax.training.distributed import distributed_job


def define_job() -> None:
    """Define --distributed, --coordinator_address, --num_processes and --process_id."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "One process of a job on several hosts; on Cloud TPU, Slurm and Open MPI it finds the others.",
    )
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0, elsewhere; implies --distributed."
    )
    flags.DEFINE_integer("num_processes", None, "Processes of the job, with --coordinator_address.")
    flags.DEFINE_integer("process_id", None, "This process's number, from 0, likewise.")
    for name in ("distributed", "coordinator_address", "num_processes", "process_id"):
        # So that --help of the command shows it, although this module defines it.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def join_job(args: Any) -> contextlib.AbstractContextManager[None]:
    """Return the job that the flags describe; one process without them.

    Args:
      args: the flags of a command.

    Raises:
      UserError: the flags do not fit together, or the job cannot be joined.
    """
    return distributed_job(
        args.distributed, args.coordinator_address, args.num_processes, args.process_id
    )
