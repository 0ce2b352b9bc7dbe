"""Adagrad with one accumulator per row of the item table (as DLRM trains its tables).

A row without gradient stays as it is, so a step touches only the rows it has looked up. The state is
one float per item instead of Adam's two per element.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rec2pm_jax.typing import Array, Params

_EPSILON = 1e-8


class RowwiseAdagradState(NamedTuple):
    """State of the optimizer of a table [V, D].

    Attributes:
      count: int32 scalar, updates so far.
      accumulator: float [V], sum over updates of each row's mean squared gradient.
    """

    count: Array  # type: ignore[assignment]  # tuple.count is not used, and checkpoints name it so
    accumulator: Array


def scaled_rows(gradient: Array, accumulator: Array) -> tuple[Array, Array]:
    """Return the new accumulator and the update direction of some rows.

    Args:
      gradient: float [n, D], gradient g of each row.
      accumulator: float [n], accumulator a of each row.

    Returns:
      a + mean(g^2), float [n], and g / (sqrt(a + mean(g^2)) + eps), float [n, D].

    >>> accumulator, direction = scaled_rows(jnp.array([[3.0, 3.0]]), jnp.array([7.0]))
    >>> accumulator.tolist(), direction.tolist()
    ([16.0], [[0.75, 0.75]])
    """
    accumulator = accumulator + jnp.mean(jnp.square(gradient), axis=-1)
    return accumulator, gradient / (jnp.sqrt(accumulator) + _EPSILON)[..., None]


def rowwise_adagrad(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return the optimizer for a whole table [V, D] with its dense gradient.

    Args:
      schedule: learning rate by step.
    """

    def init(params: Params) -> RowwiseAdagradState:
        accumulators = jax.tree.map(lambda table: jnp.zeros(table.shape[:-1], table.dtype), params)
        return RowwiseAdagradState(jnp.zeros((), jnp.int32), accumulators)

    def update(
        gradients: Params, state: RowwiseAdagradState, params: Params | None = None
    ) -> tuple[Params, RowwiseAdagradState]:
        both = jax.tree.map(scaled_rows, gradients, state.accumulator)
        accumulators, directions = jax.tree.transpose(
            jax.tree.structure(gradients), jax.tree.structure((0, 0)), both
        )
        rate = schedule(state.count)
        updates = jax.tree.map(lambda d: -rate * d, directions)
        return updates, RowwiseAdagradState(state.count + 1, accumulators)

    return optax.GradientTransformation(init, update)
