"""Dropout from one random byte per element, with randomness per row of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.typing import Array, PRNGKey


def per_row(draw: Callable[[PRNGKey], Array], rng: PRNGKey, rows: Array) -> Array:
    """Draw once for every row, so that a row's values do not depend on the rest of its batch.

    Args:
      draw: key -> array.
      rng: key that all micro-batches and devices of a step share.
      rows: int32 [B], row numbers that are unique within the step.

    Returns:
      The arrays, stacked: [B, ...].
    """
    return jax.vmap(lambda row: draw(jax.random.fold_in(rng, row)))(rows)


def random_bytes(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """Return uniform uint8 of a shape, good enough for dropout and nothing else.

    Threefry's twenty rounds took a quarter of a SASRec step on a CPU. This takes a tenth of their time:
    it hashes a counter twice with the finaliser of MurmurHash3, whose avalanche is well studied, and
    mixes in the words of a Threefry key.
    """
    words = jax.random.bits(key, (3,), jnp.uint32)
    by_word, by_byte = partial(_split_words, shape=shape), partial(_select_bytes, shape=shape)
    return jax.lax.platform_dependent(words, cpu=by_word, default=by_byte)


def _split_words(words: Array, shape: tuple[int, ...]) -> Array:
    """Return four bytes of each hashed word: the least work, for CPUs."""
    count = math.prod(shape)
    x = _hash(jnp.arange(-(-count // 4), dtype=jnp.uint32), words)
    return jax.lax.bitcast_convert_type(x, jnp.uint8).reshape(-1)[:count].reshape(shape)


def _select_bytes(words: Array, shape: tuple[int, ...]) -> Array:
    """Return the bytes of `_split_words`, each from a separately hashed word, for accelerators.

    An element depends on nothing but its number, so it is fused into the operation that uses it. Bytes
    split from words would need a new memory layout, with four bytes padded to 128 lanes.
    """
    index = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return (_hash(index >> 2, words) >> (8 * (index & 3))).astype(jnp.uint8)


def _hash(x: Array, words: Array) -> Array:
    """Hash counters x, uint32, with three key words, uint32 [3]."""

    def mix(x: Array) -> Array:
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    return mix(mix(x * (words[0] | 1) + words[1]) ^ words[2])


def dropped_of_256(rate: float) -> int:
    """Return a rate of dropout as a number of the 256 values of a byte.

    >>> dropped_of_256(0.1)
    26
    """
    return round(rate * 256)


class Dropout(nn.Module):
    """Inverted dropout whose rate is rounded to a multiple of 1 / 256.

    One byte per element decides (`random_bytes`). Kept elements are scaled by the rounded rate, so the
    expectation is exact.

    Attributes:
      rate: share of elements that are set to zero.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, rows: Array | None) -> Array:
        """Drop elements of x [B, ...]; rows: int32 [B], see `per_row`, or None for no dropout."""
        dropped = dropped_of_256(self.rate)
        if rows is None or not dropped:
            return x
        bits = per_row(lambda key: random_bytes(key, x.shape[1:]), self.make_rng("dropout"), rows)
        scale = jnp.asarray(256 / (256 - dropped), x.dtype)
        return jnp.where(bits >= dropped, x * scale, jnp.zeros((), x.dtype))
