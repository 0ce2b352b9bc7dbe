"""Stable 64-bit hashes: the same on every machine, library version and file order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def hash_strings(strings: Iterable[str]) -> np.ndarray:
    """Return the first 8 bytes of BLAKE2b of each string's UTF-8 bytes: uint64 [n]."""
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in strings)
    return np.frombuffer(digests, "<u8")


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Return the output function of SplitMix64 (Steele, Lea and Flood 2014) of each uint64."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        x = np.asarray(x, np.uint64) + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MULTIPLIER_1
        x = (x ^ (x >> np.uint64(27))) * _MULTIPLIER_2
        return x ^ (x >> np.uint64(31))


def mix(seed: int, *values: np.ndarray) -> np.ndarray:
    """Hash the tuple (seed, values[0][i], values[1][i], ..) for each i.

    The order of the arguments matters: (1, 2) and (2, 1) have different hashes.

    Args:
      seed: any integer; its lowest 64 bits count.
      *values: int64 or uint64 arrays of one shape.

    Returns:
      uint64, of the shape of the values.
    """
    state = splitmix64(np.array(seed & 0xFFFFFFFFFFFFFFFF, np.uint64))
    for value in values:
        state = splitmix64(state ^ np.asarray(value).astype(np.uint64))
    return state
