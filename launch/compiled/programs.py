"""Programs to compile ahead of time: a function and the shapes and shardings of its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.train.optimizer import make_optimizer
from rec2pm_jax.train.step import init_train_state, make_train_step
from rec2pm_jax.typing import Events

AXIS = "chips"
K = 10  # best items of a read


class Program(NamedTuple):
    """What `jax.jit(function, donate_argnums=donated).lower(*arguments)` needs.

    arguments: pytrees of `jax.ShapeDtypeStruct` with shardings over the devices it is for.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()


# (config, items, mesh) -> Program. A step whose table is sharded takes the place of the one here.
Builder = Callable[[Config, int, Mesh], Program]


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """All chips along one axis."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def train(config: Config, items: int, mesh: Mesh) -> Program:
    """Data parallel: users divided over the chips, a copy of the state on each, gradients summed.

    Raises:
      UserError: chips and micro-batches do not divide the batch.
    """
    _users_per_chip(config, mesh, config.compute.accumulate)
    method = make_method(config, items)
    optimizer = make_optimizer(config.optim, config.train.steps)
    step = make_train_step(method, optimizer, config.train.seed, config.compute.accumulate)
    state = jax.eval_shape(lambda: init_train_state(method, optimizer, config.train.seed))
    users, window = config.train.batch_size, config.data.window
    batch = {"ids": _int32(users, window + 1), "index": _int32(users)}
    if config.model.relative_bias == "position_time":
        batch["times"] = _int32(users, window + 1)
    if config.model.event_types:
        batch["types"] = _int32(users, window + 1)
    function = _over_chips(partial(step, axis_name=AXIS), mesh, (False, True), (False, False))
    return Program(
        function, (_placed(state, mesh, False), _placed(batch, mesh, True)), donated=(0,)
    )


def read(config: Config, items: int, mesh: Mesh) -> Program:
    """A request of every user: memory and as many raw events as are ever read, the best items."""
    method, arguments = _serving(config, items, mesh, lambda method: method.read_length)

    def request(params, state, events, valid, time):
        vectors = method.read(params, state, events, valid, time)
        return method.best(params, vectors, K)

    return Program(_over_chips(request, mesh, (False, *[True] * 4), (True, True)), arguments)


def update(config: Config, items: int, mesh: Mesh) -> Program:
    """A segment folded into every user's state, which is donated."""
    method, arguments = _serving(config, items, mesh, lambda method: config.data.segment)
    function = _over_chips(method.update, mesh, (False, *[True] * 4), True)
    return Program(function, arguments, donated=(1,))


BUILDERS: dict[str, Builder] = {"train": train, "read": read, "update": update}


def _serving(config: Config, items: int, mesh: Mesh, length: Callable[[Any], int]):
    """(method, arguments of `Method.update` and `read`) for the users of a batch."""
    _users_per_chip(config, mesh, 1)
    method, users = make_method(config, items), config.train.batch_size
    params = jax.eval_shape(method.init, jax.random.key(0))
    state = jax.eval_shape(lambda p: method.init_state(p, users), params)
    n = length(method)
    events = Events(
        _int32(users, n),
        _int32(users, n) if config.model.relative_bias == "position_time" else None,
        _int32(users, n) if config.model.event_types else None,
    )
    valid = jax.ShapeDtypeStruct((users, n), bool)
    rest = (_placed(x, mesh, True) for x in (state, events, valid, _int32(users)))
    return method, (_placed(params, mesh, False), *rest)


def _users_per_chip(config: Config, mesh: Mesh, parts: int) -> None:
    users, chips = config.train.batch_size, mesh.size
    if users % (chips * parts):
        raise UserError(
            f"config.train.batch_size={users} must be a multiple of {chips} chips x "
            f"config.compute.accumulate={parts}; --batch_per_chip=N sets it."
        )


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _spec(divided: bool) -> PartitionSpec:
    return PartitionSpec(AXIS) if divided else PartitionSpec()


def _over_chips(function, mesh: Mesh, inputs, outputs):
    """`function` on every chip's share; inputs, outputs: whether each is divided by users."""
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(map(_spec, inputs)),
        out_specs=jax.tree.map(_spec, outputs),
        check_vma=False,
    )


def _placed(tree, mesh: Mesh, divided: bool):
    sharding = NamedSharding(mesh, _spec(divided))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def for_tpu(config: Config) -> Config:
    """The configuration as a TPU would run it: this process computes on something else."""
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, platform="tpu"))
