"""Randomness per row of a batch, and dropout from one random byte per element."""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.typing import Array, PRNGKey


def per_row(draw, rng: PRNGKey, rows: Array) -> Array:
    """Stacks draw(key) over a key per row: what a row draws does not depend on its batch mates.

    Micro-batches and devices share `rng` and tell their rows apart by `rows`, int32 [B], numbers that
    are unique within the step.
    """
    return jax.vmap(lambda row: draw(jax.random.fold_in(rng, row)))(rows)


def random_bytes(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """Uniform uint8 of a shape: good enough for dropout and nothing else, at a tenth of the cost.

    Threefry's twenty rounds were a quarter of a SASRec step on a CPU. Here a counter goes twice through
    the finaliser of MurmurHash3 (its avalanche is well studied), between the words of a Threefry key.
    """
    words = jax.random.bits(key, (3,), jnp.uint32)
    by_word, by_byte = partial(_cut_words, shape=shape), partial(_picked_bytes, shape=shape)
    return jax.lax.platform_dependent(words, cpu=by_word, default=by_byte)


def _cut_words(words: Array, shape: tuple[int, ...]) -> Array:
    """Four bytes from each word: least work."""
    count = math.prod(shape)
    x = _hash(jnp.arange(-(-count // 4), dtype=jnp.uint32), words)
    return jax.lax.bitcast_convert_type(x, jnp.uint8).reshape(-1)[:count].reshape(shape)


def _picked_bytes(words: Array, shape: tuple[int, ...]) -> Array:
    """The same bytes, each from a word of its own: nothing but its number decides an element, so an
    accelerator fuses all of it into what is dropped. Bytes of words had to be laid out anew there,
    four of them filled up to 128 lanes."""
    index = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return (_hash(index >> 2, words) >> (8 * (index & 3))).astype(jnp.uint8)


def _hash(x: Array, words: Array) -> Array:
    def mix(x):
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    return mix(mix(x * (words[0] | 1) + words[1]) ^ words[2])


def dropped_of_256(rate: float) -> int:
    """The rate of dropout as a number of byte values."""
    return round(rate * 256)


class Dropout(nn.Module):
    """Inverted dropout whose rate is rounded to a multiple of 1/256.

    A byte per element (`random_bytes`) is enough for that; the scaling uses the rounded rate, so
    that the expectation is exact.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, rows: Array | None) -> Array:
        """x: [B, ...]; rows: int32 [B], see `per_row`, or None to switch dropout off."""
        dropped = dropped_of_256(self.rate)
        if rows is None or not dropped:
            return x
        bits = per_row(lambda key: random_bytes(key, x.shape[1:]), self.make_rng("dropout"), rows)
        scale = jnp.asarray(256 / (256 - dropped), x.dtype)
        return jnp.where(bits >= dropped, x * scale, jnp.zeros((), x.dtype))
