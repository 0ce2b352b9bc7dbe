"""A job of several processes: how one of them joins, and how all of them end.

Exit codes: 0 done, 1 an error, 75 asked to stop (SIGTERM) and saved, 76 another process was lost. After
75 and 76 the same command on all machines continues from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from rec2pm_jax.cli import STOPPED
from rec2pm_jax.errors import UserError
from rec2pm_jax.train.preemption import Preempted
from rec2pm_jax.train.roll_call import FAILED, RollCall

LOST = 76

_HEARTBEAT_S = 90  # JAX's own limit, where a network swallows what the roll call would hear

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


@contextlib.contextmanager
def job() -> Iterator[None]:
    """Joins the job that the flags describe, if any, and leaves it when the block ends.

    In a job of several processes the block's exceptions end the process here, at once: others may be
    waiting for it, and are told.

    Raises:
      UserError: the flags do not fit together.
    """
    args = flags.FLAGS
    explicit = (args.coordinator_address, args.num_processes, args.process_id)
    given = [value is not None for value in explicit]
    if not (args.distributed or any(given)):
        yield
        return
    if any(given) and not all(given):
        raise UserError(
            "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I go together."
        )
    if any(given) and not 0 <= args.process_id < args.num_processes:
        raise UserError(
            f"--process_id={args.process_id} must be from 0 to --num_processes - 1 = "
            f"{args.num_processes - 1}."
        )
    _initialize(*explicit)
    roll_call = _call_roll(args.coordinator_address)
    try:
        yield
        # Nobody leaves before all are done: the first to go takes its part of the service along.
        multihost_utils.sync_global_devices("done")
        roll_call.leave()
    except Preempted as stopped:
        if jax.process_index() == 0:
            print(stopped, flush=True)
        roll_call.leave()
        _exit(STOPPED)
    except UserError as error:
        roll_call.leave(failed=True)
        print(f"error: process {jax.process_index()}: {error}", file=sys.stderr)
        _exit(1)
    except Exception:
        # Most often a collective whose partner is gone; the roll call knows which one, and exits.
        roll_call.wait_for_loss()
        roll_call.leave(failed=True)
        traceback.print_exc()
        _exit(1)


def _initialize(address: str | None, count: int | None, index: int | None) -> None:
    try:
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=_HEARTBEAT_S)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"This process cannot join its job ({str(error).splitlines()[0]}): on Cloud TPU, Slurm and "
            "Open MPI pass --distributed, elsewhere --coordinator_address=HOST:PORT --num_processes=N "
            "--process_id=I, and start all N within five minutes."
        ) from error


def _call_roll(address: str | None) -> RollCall:
    """Process 0 listens and says where; the others connect."""
    index = jax.process_index()
    roll_call = RollCall(index, _end_lost)
    place = np.zeros(256, np.uint8)
    if index == 0:
        host = address.rsplit(":", 1)[0] if address else socket.gethostbyname(socket.gethostname())
        text = f"{host}:{roll_call.listen()}".encode()
        place[: len(text)] = np.frombuffer(text, np.uint8)
    place = np.asarray(multihost_utils.broadcast_one_to_all(place))
    if index:
        host, port = bytes(place).rstrip(b"\0").decode().rsplit(":", 1)
        roll_call.join(host, int(port))
    return roll_call


def _end_lost(process: str, what: str) -> None:
    advice = "Start the same command again on all machines: it"
    if what == FAILED:
        advice = "Once that is put right, the same command on all machines"
    print(
        f"error: {process} {what}, so this job cannot go on. {advice} continues from the newest "
        "checkpoint, with as many processes as you like.",
        file=sys.stderr,
    )
    _exit(1 if what == FAILED else LOST)


def _exit(code: int) -> None:
    """Ends the process without waiting for anybody, as JAX's own shutdown would."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
