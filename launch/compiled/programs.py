"""Programs to compile ahead of time: a function and the shapes and shardings of its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.train.partition import AXIS, make_program
from rec2pm_jax.typing import Events

K = 10  # best items of a read


class Program(NamedTuple):
    """What `jax.jit(function, donate_argnums=donated).lower(*arguments)` needs.

    arguments: pytrees of `jax.ShapeDtypeStruct` with shardings over the devices it is for.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()


Builder = Callable[[Config, int, Mesh], Program]  # (config, items, mesh) -> Program


def train(config: Config, items: int, mesh: Mesh) -> Program:
    """The step that `launch.train` would run on such a mesh, with a whole or a sharded item table.

    Raises:
      UserError: chips and micro-batches do not divide the batch, or the chips cannot share a table.
    """
    _users_per_chip(config, mesh, config.compute.accumulate)
    program = make_program(config, make_method(config, items), mesh)
    return Program(program.step, (program.state, program.batch), donated=(0,))


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
    """(method, arguments of `Method.update` and `read`) for the users of a batch.

    Raises:
      UserError: chips do not divide the users, or the table is sharded: a server holds all of it.
    """
    _users_per_chip(config, mesh, 1)
    if config.model.table == "sharded":
        raise UserError(
            "--step=read and --step=update are for config.model.table=whole: how a request is served "
            "from a table that no chip can hold is not built. Use --step=train, or --items=N that fit."
        )
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
