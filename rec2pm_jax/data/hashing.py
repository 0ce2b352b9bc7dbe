"""Stable 64-bit hashes: the same on every machine, library version and file order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def hash_strings(strings: Iterable[str]) -> np.ndarray:
    """uint64 [n]: the first 8 bytes of BLAKE2b of each string's UTF-8."""
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in strings)
    return np.frombuffer(digests, "<u8")


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), elementwise on uint64."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        x = np.asarray(x, np.uint64) + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MULTIPLIER_1
        x = (x ^ (x >> np.uint64(27))) * _MULTIPLIER_2
        return x ^ (x >> np.uint64(31))


def mix(seed: int, *values: np.ndarray) -> np.ndarray:
    """Hashes (seed, values[0][i], values[1][i], ...) for each i; int64 or uint64 arrays, one shape.

    The order of the arguments matters, so (1, 2) and (2, 1) hash differently.
    """
    state = splitmix64(np.uint64(seed & 0xFFFFFFFFFFFFFFFF))
    for value in values:
        state = splitmix64(state ^ np.asarray(value).astype(np.uint64))
    return state
