"""Child processes whose speed matters: on fixed cores, with a fixed allocator."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rec2pm_jax.errors import UserError

_STOP_S = 30.0  # how long a training run may take to save and exit

# By default glibc returns big arrays to the system after every use; page faults then cost 10-20 %.
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
        "MALLOC_TOP_PAD_": str(1 << 28),
    },
}


def make_environment(allocator: str, single_thread: bool) -> dict[str, str]:
    """Return the environment of a child: allocator and threads are read only when a program starts.

    Args:
      allocator: a key of `ALLOCATORS`.
      single_thread: whether the child computes with one thread.
    """
    env = os.environ | ALLOCATORS[allocator]
    if single_thread:
        flag = "--xla_cpu_multi_thread_eigen=false"
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flag}".strip()
        env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # On an accelerator: leave memory to other processes, and compute float32 products in float32.
    sharing = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return sharing | env


def list_usable_cores() -> list[int]:
    """Return the cores that this process may run on: a container or a job may own some only."""
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return sorted(affinity(0))


def pin(pid: int, cores: set[int]) -> None:
    """Keep a process on `cores`, if the system supports that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, cores)


def choose_cores(workers: int) -> list[int | None]:
    """Return the core of each of several processes that run side by side.

    Args:
      workers: how many processes; 0: one per usable core.

    Returns:
      Cores to pin to; [None] for a single worker, which computes with all of them.

    Raises:
      UserError: more workers than usable cores.
    """
    usable = list_usable_cores()
    if workers > len(usable):
        raise UserError(f"--workers={workers}: this process may use {len(usable)} cores only.")
    return [None] if workers == 1 else [*usable[: workers or None]]


class PinnedProcess:
    """A child process on its own core, started by the constructor.

    Attributes:
      core: the core that the process is pinned to; None: all of them.
      process: the child.
      log: file with its output.
    """

    def __init__(self, command: Sequence[str], log: Path, core: int | None):
        self.core, self.log = core, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env=make_environment("tuned", single_thread=core is not None),
            )
        if core is not None:
            pin(self.process.pid, {core})

    def last_line(self) -> str:
        """Return the end of the last line of the log."""
        tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return " ".join(tail)[-300:]

    def stop(self) -> None:
        """End the process after it has saved a checkpoint, or kill it if that takes too long."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
