"""Stored preference memory in fewer bytes: float32, bfloat16, or int8 with one scale per slot.

Pure functions of arrays; each slot is encoded separately:

    float32   4 D bytes per slot
    bfloat16  2 D, rounded to the nearest even
    int8      D + 4: round(m / scale) in -127..127 with scale = max |m| / 127, a float32

so that 4 slots of 64 numbers take 1,024, 512 and 272 bytes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.typing import Array

FORMATS = ("float32", "bfloat16", "int8")
# XLA turns a division by a constant into a product, which differs in the last bit: multiply here too.
_INVERSE = np.float32(1 / 127)
_SMALLEST = np.finfo(np.float32).tiny  # XLA flushes smaller scales to zero, and so must numpy


def slot_bytes(kind: str, dim: int) -> int:
    """Return the bytes of one slot.

    >>> [4 * slot_bytes(kind, dim=64) for kind in FORMATS]
    [1024, 512, 272]

    Args:
      kind: one of `FORMATS`.
      dim: numbers of a slot.

    Raises:
      UserError: the format is unknown.
    """
    check_format(kind)
    return {"float32": 4 * dim, "bfloat16": 2 * dim, "int8": dim + 4}[kind]


def check_format(kind: str) -> None:
    """Check the name of a format.

    Raises:
      UserError: it is not in `FORMATS`.
    """
    if kind not in FORMATS:
        raise UserError(f"Memory format {kind!r} is unknown; choose one of {', '.join(FORMATS)}.")


def encode(memory: np.ndarray, kind: str) -> np.ndarray:
    """Encode memory as bytes, little-endian; an int8 slot begins with its scale.

    Args:
      memory: float32 [..., slots, D], finite.
      kind: one of `FORMATS`.

    Returns:
      uint8 [..., slots * slot_bytes(kind, D)].
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
    """Decode what `encode` returned.

    >>> memory = np.array([[1.0, -0.5, 0.25]], np.float32)
    >>> decode(encode(memory, "int8"), "int8", dim=3).round(2).tolist()
    [[1.0, -0.5, 0.25]]

    Args:
      encoded: uint8 [..., slots * slot_bytes(kind, dim)].
      kind: one of `FORMATS`.
      dim: D.

    Returns:
      float32 [..., slots, D].

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
    """Return `decode(encode(memory))`, to the same bits, inside compiled code.

    Args:
      memory: float32 [..., slots, D].
      kind: one of `FORMATS`.
    """
    check_format(kind)
    if kind == "float32":
        return memory
    if kind == "bfloat16":
        # XLA may remove a pair of casts.
        return jax.lax.reduce_precision(memory, exponent_bits=8, mantissa_bits=7)
    scale, numbers = _quantise(jnp, memory)
    return numbers.astype(jnp.float32) * scale


def _quantise(xp: Any, memory: Any) -> tuple[Any, Any]:
    """Return (scale float32 [..., slots, 1], numbers int8 [..., slots, D]) by numpy or jax.numpy."""
    scale = xp.max(xp.abs(memory), axis=-1, keepdims=True) * _INVERSE
    scale = xp.where(scale < _SMALLEST, xp.zeros_like(scale), scale)
    numbers = memory / xp.where(scale > 0, scale, xp.ones_like(scale))
    # A rounded-down scale could give 127.00001, and a denormal one more.
    return scale, xp.clip(xp.rint(numbers), -127, 127).astype(xp.int8)
