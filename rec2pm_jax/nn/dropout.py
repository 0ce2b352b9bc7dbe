"""Randomness per row of a batch, and dropout from one random byte per element."""

from __future__ import annotations

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


def dropped_of_256(rate: float) -> int:
    """The rate of dropout as a number of byte values."""
    return round(rate * 256)


class Dropout(nn.Module):
    """Inverted dropout whose rate is rounded to a multiple of 1/256.

    Random bits are most of the cost of dropout on attention weights; a byte per element needs a
    quarter of those that a float32 uniform does. The scaling uses the rounded rate, so that the
    expectation is exact.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, rows: Array | None) -> Array:
        """x: [B, ...]; rows: int32 [B], see `per_row`, or None to switch dropout off."""
        dropped = dropped_of_256(self.rate)
        if rows is None or not dropped:
            return x
        bits = per_row(
            lambda key: jax.random.bits(key, x.shape[1:], jnp.uint8), self.make_rng("dropout"), rows
        )
        scale = jnp.asarray(256 / (256 - dropped), x.dtype)
        return jnp.where(bits >= dropped, x * scale, jnp.zeros((), x.dtype))
