"""Adagrad with one accumulator per row of the item table (as DLRM trains its tables).

A row without gradient stays as it is, so a step touches only the rows it has looked up, and the state
is one float per item instead of Adam's two per element.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rec2pm_jax.typing import Array

_EPSILON = 1e-8


class RowwiseAdagradState(NamedTuple):
    """Attributes: count int32 scalar, updates so far; accumulator like the table without D."""

    count: Array
    accumulator: Array


def scaled_rows(gradient: Array, accumulator: Array) -> tuple[Array, Array]:
    """Accumulator a + mean(g^2) and direction g / (sqrt(a) + eps) of rows g [n, W], a [n]."""
    accumulator = accumulator + jnp.mean(jnp.square(gradient), axis=-1)
    return accumulator, gradient / (jnp.sqrt(accumulator) + _EPSILON)[..., None]


def rowwise_adagrad(schedule: optax.Schedule) -> optax.GradientTransformation:
    """The same for a whole table [V, W] with its dense gradient."""

    def init(params):
        accumulators = jax.tree.map(lambda table: jnp.zeros(table.shape[:-1], table.dtype), params)
        return RowwiseAdagradState(jnp.zeros((), jnp.int32), accumulators)

    def update(gradients, state, params=None):
        both = jax.tree.map(scaled_rows, gradients, state.accumulator)
        accumulators, directions = jax.tree.transpose(
            jax.tree.structure(gradients), jax.tree.structure((0, 0)), both
        )
        rate = schedule(state.count)
        updates = jax.tree.map(lambda d: -rate * d, directions)
        return updates, RowwiseAdagradState(state.count + 1, accumulators)

    return optax.GradientTransformation(init, update)
