"""The kind of machine that a program is compiled for."""

from __future__ import annotations

import jax


def platform_of(name: str) -> str:
    """Return cpu, gpu or tpu.

    The choice is made when a function is traced. To compile ahead of time for another machine, name it
    in the configuration. `jax.lax.platform_dependent` is no alternative: it would keep what the
    backward passes of all platforms need.

    Args:
      name: `config.compute.platform`; auto is the platform that this process computes on.

    >>> platform_of("tpu")
    'tpu'
    """
    return jax.default_backend() if name == "auto" else name
