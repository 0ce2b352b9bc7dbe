"""How a pure train step is compiled and where its state lives: `jit` or `pmap`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.train.step import Metrics, TrainState, TrainStep
from rec2pm_jax.typing import Batch

_AXIS = "devices"


class Partition(NamedTuple):
    """A compiled step and the way into and out of its layout.

    Attributes:
      step: (state, batch of numpy arrays) -> (state, metrics). The given state is donated.
      place: one copy of the state -> the layout of `step`.
      gather: that layout -> one copy of the state.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    place: Callable[[TrainState], TrainState]
    gather: Callable[[TrainState], TrainState]


def make_partition(train_step: TrainStep, kind: str, batch_size: int, accumulate: int) -> Partition:
    """Compiles `train_step` for one device (`jit`) or for all local devices (`pmap`).

    Raises:
      UserError: `pmap` and a batch size that devices and micro-batches do not divide.
    """
    if kind == "jit":
        return Partition(
            jax.jit(train_step, donate_argnums=0), lambda state: state, lambda state: state
        )
    devices = jax.local_device_count()
    if batch_size % (devices * accumulate):
        raise UserError(
            f"config.train.batch_size={batch_size} must be a multiple of {devices} devices x "
            f"config.compute.accumulate={accumulate} with config.train.partition=pmap."
        )
    return _pmap_partition(train_step, devices)


def _pmap_partition(train_step: TrainStep, devices: int) -> Partition:
    compiled = jax.pmap(
        functools.partial(train_step, axis_name=_AXIS), axis_name=_AXIS, donate_argnums=0
    )
    copy = jax.pmap(lambda _, state: state, in_axes=(0, None))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        parts = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
        state, metrics = compiled(state, parts)
        return state, jax.tree.map(lambda x: x[0], metrics)

    return Partition(
        step,
        place=lambda state: copy(jnp.arange(devices), state),
        gather=lambda state: jax.tree.map(lambda x: x[0], state),
    )
