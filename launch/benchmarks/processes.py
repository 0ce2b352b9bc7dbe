"""Processes of our own whose speed matters: on fixed cores, with a fixed allocator."""

from __future__ import annotations

import os

# glibc gives big arrays back to the system after every use otherwise, and page faults cost 10-20 %.
ALLOCATORS = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
        "MALLOC_TOP_PAD_": str(1 << 28),
    },
}


def environment(allocator: str, single_thread: bool) -> dict[str, str]:
    """This process's environment for a child: both settings count only before a program starts."""
    env = os.environ | ALLOCATORS[allocator]
    if single_thread:
        flag = "--xla_cpu_multi_thread_eigen=false"
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flag}".strip()
        env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # Where there is an accelerator: room for all processes, and float32 products that are float32.
    sharing = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return sharing | env


def usable_cores() -> list[int]:
    """Cores that this process may run on: a container or a job may own some only."""
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return sorted(affinity(0))


def pin(pid: int, cores: set[int]) -> None:
    """Keeps a process on `cores`, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, cores)
