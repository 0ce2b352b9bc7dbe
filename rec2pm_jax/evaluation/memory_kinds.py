"""Which kinds of memory a method can be evaluated with.

overwrite, append   folded segment by segment, as streaming does
one_time            all archived events compressed in one pass of the same weights
none                no memory
"""

from __future__ import annotations

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.method import Method


def resolve_memory(method: Method, memory: str | None) -> str:
    """Return the kind of memory to evaluate with.

    Args:
      method: the method to evaluate.
      memory: "overwrite", "append", "one_time" or "none"; None for the method's default.

    Raises:
      UserError: the method, as it is configured, has no such memory.
    """
    default = method.memory_kind
    possible = (default, "one_time") if method.can_compress else (default,)
    if memory is None:
        return default
    if memory not in possible:
        raise UserError(
            f"memory={memory!r} does not fit method {method.config.method.name} as it is "
            f"configured; use {' or '.join(possible)}."
        )
    return memory
