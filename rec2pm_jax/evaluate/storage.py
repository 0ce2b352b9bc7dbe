"""What a memory loses by being stored in fewer bytes, as a store would give it back.

An update starts from what was stored, so that its error enters the next memory: evaluation rounds
after every update, not once at the end.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.typing import Array

STORED = ("float32", "bfloat16", "int8")


def check_stored(kind: str) -> None:
    """Raises UserError unless `kind` is one of `STORED`."""
    if kind not in STORED:
        raise UserError(
            f"stored={kind!r} is unknown; choose one of {', '.join(STORED)}.{nearest(kind, STORED)}"
        )


def rounded(memory: Array, kind: str) -> Array:
    """A memory [..., slots, D] as it is read back, in its own dtype.

    int8: q = round(x / s) in [-127, 127] with s = max |x| / 127 of each slot, float32; a slot of zeros
    has scale 0 and stays zero.
    """
    if kind == "float32":
        return memory
    if kind == "bfloat16":
        # Not a pair of casts, which XLA may take for nothing.
        return jax.lax.reduce_precision(memory, exponent_bits=8, mantissa_bits=7)
    values = memory.astype(jnp.float32)
    scale = jnp.max(jnp.abs(values), axis=-1, keepdims=True, initial=0.0) * jnp.float32(1 / 127)
    codes = jnp.clip(jnp.rint(values / jnp.where(scale > 0, scale, 1)), -127, 127)
    return (codes * scale).astype(memory.dtype)


def stored_bytes(slots: int, dim: int, kind: str, own: int = 4) -> int:
    """Bytes of `slots` x `dim` numbers; a float32 memory keeps its own dtype of `own` bytes."""
    per_slot = {"float32": own * dim, "bfloat16": 2 * dim, "int8": dim + 4}
    return slots * per_slot[kind]
