"""Stored preference memory in fewer bytes: float32, bfloat16, or int8 with one scale per slot.

Pure functions of arrays. What is encoded depends on the values alone, each slot for itself:

    float32   4 D bytes per slot
    bfloat16  2 D, rounded to the nearest even
    int8      D + 4: round(m / scale) in -127..127 with scale = max |m| / 127, a float32

so that 4 slots of 64 numbers take 1,024, 512 and 272 bytes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.typing import Array

FORMATS = ("float32", "bfloat16", "int8")
# As a product: XLA turns a division by a constant into one, which differs in the last bit.
_INVERSE = np.float32(1 / 127)
_SMALLEST = np.finfo(np.float32).tiny  # scales below it XLA takes for zero, and so must numpy


def slot_bytes(kind: str, dim: int) -> int:
    """Bytes of one slot of `dim` numbers in format `kind`.

    Raises:
      UserError: an unknown format.
    """
    check_format(kind)
    return {"float32": 4 * dim, "bfloat16": 2 * dim, "int8": dim + 4}[kind]


def check_format(kind: str) -> None:
    """Raises: UserError for a name that is not in `FORMATS`."""
    if kind not in FORMATS:
        raise UserError(f"Memory format {kind!r} is unknown; choose one of {', '.join(FORMATS)}.")


def encode(memory: np.ndarray, kind: str) -> np.ndarray:
    """Memory float32 [..., slots, D] as uint8 [..., slots * slot_bytes(kind, D)].

    int8 needs finite numbers. Scales stand before the numbers of their slot; little-endian.
    """
    memory = np.ascontiguousarray(memory, "<f4")
    dim = memory.shape[-1]
    if kind == "int8":
        scale, numbers = _quantise(np, memory)
        rows = np.concatenate([scale.astype("<f4").view(np.uint8), numbers.view(np.uint8)], axis=-1)
    else:
        rows = memory if kind == "float32" else memory.astype(ml_dtypes.bfloat16)
        rows = rows.view(np.uint8)
    return rows.reshape(*memory.shape[:-2], memory.shape[-2] * slot_bytes(kind, dim))


def decode(encoded: np.ndarray, kind: str, dim: int) -> np.ndarray:
    """What `encode` made of memory of D = `dim`: float32 [..., slots, D].

    Raises:
      UserError: the last axis of `encoded` is not a number of whole slots.
    """
    each = slot_bytes(kind, dim)
    slots, rest = divmod(encoded.shape[-1], each)
    if rest:
        raise UserError(
            f"{encoded.shape[-1]} bytes are not whole slots of {each} bytes ({kind}, D={dim})."
        )
    rows = np.ascontiguousarray(encoded, np.uint8).reshape(*encoded.shape[:-1], slots, each)
    if kind == "float32":
        return rows.view("<f4").astype(np.float32)
    if kind == "bfloat16":
        return rows.view(ml_dtypes.bfloat16).astype(np.float32)
    scale = np.ascontiguousarray(rows[..., :4]).view("<f4").astype(np.float32)
    return rows[..., 4:].view(np.int8).astype(np.float32) * scale


def rounded(memory: Array, kind: str) -> Array:
    """`decode(encode(memory))` inside of compiled code, to the same bits: float32 [..., slots, D]."""
    check_format(kind)
    if kind == "float32":
        return memory
    if kind == "bfloat16":
        # Not a pair of casts, which XLA may take for nothing.
        return jax.lax.reduce_precision(memory, exponent_bits=8, mantissa_bits=7)
    scale, numbers = _quantise(jnp, memory)
    return numbers.astype(jnp.float32) * scale


def _quantise(xp, memory):
    """(scale float32 [..., slots, 1], numbers int8 [..., slots, D]), by numpy or jax.numpy."""
    scale = xp.max(xp.abs(memory), axis=-1, keepdims=True) * _INVERSE
    scale = xp.where(scale < _SMALLEST, xp.zeros_like(scale), scale)
    numbers = memory / xp.where(scale > 0, scale, xp.ones_like(scale))
    # A rounded-down scale could give 127.00001, and a denormal one more.
    return scale, xp.clip(xp.rint(numbers), -127, 127).astype(xp.int8)
