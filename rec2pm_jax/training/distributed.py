"""Run one process of a job of several processes: join the job, and end together with the others.

Exit codes:

    0   done
    1   an error; its message explains it
    75  asked to stop (SIGTERM), and saved
    76  another process was lost

After 75 and 76 the same command on all machines continues from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from rec2pm_jax.errors import UserError
from rec2pm_jax.training.peer_monitor import FAILED, PeerMonitor
from rec2pm_jax.training.preemption import EXIT_PREEMPTED, Preempted

EXIT_PEER_LOST = 76

# JAX's limit, for networks that swallow what the peer monitor would hear.
_JAX_HEARTBEAT_TIMEOUT_S = 90


@contextlib.contextmanager
def distributed_job(
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Join a job, run the block, and leave the job when the block ends.

    Without any argument the block runs as a job of one process. In a job of several processes an
    exception of the block ends this process at once and tells the others, which may be waiting.

    Args:
      distributed: join a job whose other processes JAX finds itself: on Cloud TPU, Slurm and Open
        MPI.
      coordinator_address: elsewhere, HOST:PORT of process 0.
      num_processes: number of processes, with `coordinator_address`.
      process_id: number of this process from 0, with `coordinator_address`.

    Raises:
      UserError: the arguments do not fit together, or the job cannot be joined.
    """
    explicit = (coordinator_address, num_processes, process_id)
    if not distributed and all(value is None for value in explicit):
        yield
        return
    _check_explicit(coordinator_address, num_processes, process_id)
    _initialize(coordinator_address, num_processes, process_id)
    monitor = _start_monitor(coordinator_address)
    try:
        yield
        # The first process to leave takes its part of JAX's service along, so all leave together.
        multihost_utils.sync_global_devices("done")
        monitor.leave()
    except Preempted as stopped:
        if jax.process_index() == 0:
            print(stopped, flush=True)
        monitor.leave()
        _exit(EXIT_PREEMPTED)
    except UserError as error:
        monitor.leave(failed=True)
        print(f"error: process {jax.process_index()}: {error}", file=sys.stderr)
        _exit(1)
    except Exception:
        # Most often a collective whose partner is gone. The monitor knows which one, and exits.
        monitor.wait_for_loss()
        monitor.leave(failed=True)
        traceback.print_exc()
        _exit(1)


def _check_explicit(address: str | None, count: int | None, index: int | None) -> None:
    """Raise UserError unless all three are given, or none of them."""
    if address is None and count is None and index is None:
        return
    if address is None or count is None or index is None:
        raise UserError(
            "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I go together."
        )
    if not 0 <= index < count:
        raise UserError(
            f"--process_id={index} must be from 0 to --num_processes - 1 = {count - 1}."
        )


def _initialize(address: str | None, count: int | None, index: int | None) -> None:
    """Start JAX's service and meet the other processes."""
    try:
        jax.distributed.initialize(
            address, count, index, heartbeat_timeout_seconds=_JAX_HEARTBEAT_TIMEOUT_S
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"This process cannot join its job ({str(error).splitlines()[0]}): on Cloud TPU, Slurm and "
            "Open MPI pass --distributed, elsewhere --coordinator_address=HOST:PORT --num_processes=N "
            "--process_id=I, and start all N within five minutes."
        ) from error


def _start_monitor(address: str | None) -> PeerMonitor:
    """Let process 0 listen and publish its port, and the others connect to it."""
    index = jax.process_index()
    monitor = PeerMonitor(index, _end_after_loss)
    place = np.zeros(256, np.uint8)
    if index == 0:
        host = address.rsplit(":", 1)[0] if address else socket.gethostbyname(socket.gethostname())
        text = f"{host}:{monitor.listen()}".encode()
        place[: len(text)] = np.frombuffer(text, np.uint8)
    place = np.asarray(multihost_utils.broadcast_one_to_all(place))
    if index:
        host, port = bytes(place).rstrip(b"\0").decode().rsplit(":", 1)
        monitor.connect(host, int(port))
    return monitor


def _end_after_loss(process: str, what: str) -> None:
    """Explain which process is lost, and exit."""
    advice = "Start the same command again on all machines: it"
    if what == FAILED:
        advice = "Once that is put right, the same command on all machines"
    print(
        f"error: {process} {what}, so this job cannot continue. {advice} continues from the newest "
        "checkpoint, with as many processes as you like.",
        file=sys.stderr,
    )
    _exit(1 if what == FAILED else EXIT_PEER_LOST)


def _exit(code: int) -> NoReturn:
    """End this process without waiting for the others, as JAX's shutdown would."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
