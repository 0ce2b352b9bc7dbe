"""Buckets of elapsed times and of weights: integers, so that all platforms give the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec2pm_jax.typing import Array

MINUTE = 60  # seconds
GAPS = 24  # buckets of elapsed time; the last begins at 2^21 minutes, which is four years
WEIGHTS = 36  # buckets of weights and of shares, two per octave


def gap_buckets(gaps: Array, unit: int = MINUTE) -> Array:
    """Return the bucket of each elapsed time: 0 for none, 1 below a unit, then one per octave.

    A negative time, of events out of order, counts as one below a unit.

    Args:
      gaps: int32 [...], for example in seconds.
      unit: how many of them begin bucket 2.

    Returns:
      int32 [...], in 0 .. GAPS - 1.

    >>> gap_buckets(jnp.array([0, 59, 60, 119, 120, 86400])).tolist()
    [0, 1, 2, 2, 3, 12]
    """
    octave = bit_length(jnp.maximum(gaps, 0) // unit)
    return jnp.where(gaps == 0, 0, jnp.minimum(1 + octave, GAPS - 1))


def weight_buckets(numbers: Array) -> Array:
    """Return a bucket of each number >= 0, two per octave: int32 [...], in 0 .. WEIGHTS - 1.

    >>> weight_buckets(jnp.array([0, 1, 2, 3, 4, 5, 6, 7, 8])).tolist()
    [0, 2, 4, 5, 6, 6, 7, 7, 8]
    """
    octave = bit_length(numbers)
    upper_half = (numbers >> jnp.maximum(octave - 2, 0)) & 1
    bucket = 2 * octave + jnp.where(octave > 1, upper_half, 0)
    return jnp.minimum(bucket, WEIGHTS - 1)


def bit_length(numbers: Array) -> Array:
    """Return the bits that each number >= 0 needs: int32 of the same shape.

    >>> bit_length(jnp.array([0, 1, 2, 3, 4])).tolist()
    [0, 1, 2, 2, 3]
    """
    return 32 - jax.lax.clz(numbers.astype(jnp.int32))
