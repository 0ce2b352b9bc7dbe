"""Child processes whose speed matters: on fixed cores, with a fixed allocator."""

from __future__ import annotations

import os

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
