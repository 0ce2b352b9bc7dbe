"""Dropout from one random byte per element."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.typing import Array


class Dropout(nn.Module):
    """Inverted dropout whose rate is rounded to a multiple of 1/256.

    Random bits are most of the cost of dropout on attention weights; a byte per element needs a
    quarter of those that a float32 uniform does. The scaling uses the rounded rate, so that the
    expectation is exact.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dropped = round(self.rate * 256)
        if self.deterministic or not dropped:
            return x
        bits = jax.random.bits(self.make_rng("dropout"), x.shape, jnp.uint8)
        scale = jnp.asarray(256 / (256 - dropped), x.dtype)
        return jnp.where(bits >= dropped, x * scale, jnp.zeros((), x.dtype))
