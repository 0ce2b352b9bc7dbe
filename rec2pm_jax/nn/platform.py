"""Which kind of machine a program is for."""

from __future__ import annotations

import jax


def platform_of(name: str) -> str:
    """cpu, gpu or tpu: `config.compute.platform`, or with auto the one this process computes on.

    The choice is made when a function is traced. Whoever compiles ahead of time for another machine
    says so in the configuration: `jax.lax.platform_dependent` would keep what the backward passes
    of all the alternatives need.
    """
    return jax.default_backend() if name == "auto" else name
