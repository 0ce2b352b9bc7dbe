"""Programs to compile ahead of time: a function and the shapes and shardings of its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods import sharded_serving
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.sharded_table import check_shards, packed_shape, table_rows
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.train.partition import AXIS, make_program, partition_specs
from rec2pm_jax.typing import Events, Params

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
    if config.model.table == "sharded":
        function = partial(sharded_serving.read_best, config, items, K, axis_name=AXIS)
        return Program(_over_chips(function, mesh, arguments, (True, True, False)), arguments)

    def request(params, state, events, valid, time):
        vectors = method.read(params, state, events, valid, time)
        return method.best(params, vectors, K)

    return Program(_over_chips(request, mesh, arguments, (True, True)), arguments)


def update(config: Config, items: int, mesh: Mesh) -> Program:
    """A segment folded into every user's state, which is donated."""
    method, arguments = _serving(config, items, mesh, lambda method: config.data.segment)
    function, results = method.update, True
    if config.model.table == "sharded":
        function = partial(sharded_serving.update, config, items, axis_name=AXIS)
        results = (True, False)
    return Program(_over_chips(function, mesh, arguments, results), arguments, donated=(1,))


BUILDERS: dict[str, Builder] = {"train": train, "read": read, "update": update}


def _serving(config: Config, items: int, mesh: Mesh, length: Callable[[Any], int]):
    """(method, arguments of `Method.update` and `read`) for the users of a batch.

    Raises:
      UserError: chips do not divide the users, or the chips cannot share a table.
    """
    _users_per_chip(config, mesh, 1)
    method, users = make_method(config, items), config.train.batch_size
    params, specs = _params(config, method, mesh.size)
    state = jax.eval_shape(lambda p: method.init_state(p, users), params)
    n = length(method)
    events = Events(
        _int32(users, n),
        _int32(users, n) if config.model.relative_bias == "position_time" else None,
        _int32(users, n) if config.model.event_types else None,
    )
    valid = jax.ShapeDtypeStruct((users, n), bool)
    rest = (_placed(x, mesh, P(AXIS)) for x in (state, events, valid, _int32(users)))
    return method, (_placed(params, mesh, specs), *rest)


def _params(config: Config, method: Method, shards: int) -> tuple[Params, Params]:
    """Shapes of the parameters, and how they are divided: the rows of a sharded table are."""
    params = jax.eval_shape(method.init, jax.random.key(0))
    if config.model.table != "sharded":
        return params, jax.tree.map(lambda _: P(), params)
    check_shards(shards, config.item_dim)
    shape = packed_shape(table_rows(method.num_items), config.item_dim)
    table = jax.ShapeDtypeStruct(shape, params["embedding"][TABLE].dtype)
    params = {**params, "embedding": {**params["embedding"], TABLE: table}}
    return params, partition_specs({"params": params})["params"]


def _users_per_chip(config: Config, mesh: Mesh, parts: int) -> None:
    users, chips = config.train.batch_size, mesh.size
    if users % (chips * parts):
        raise UserError(
            f"config.train.batch_size={users} must be a multiple of {chips} chips x "
            f"config.compute.accumulate={parts}; --batch_per_chip=N sets it."
        )


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _over_chips(function, mesh: Mesh, arguments, results):
    """`function` on every chip's share of the arguments; results: whether each is divided by users."""
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=jax.tree.map(lambda x: x.sharding.spec, arguments),
        out_specs=jax.tree.map(lambda divided: P(AXIS) if divided else P(), results),
        check_vma=False,
    )


def _placed(tree, mesh: Mesh, specs):
    """tree: of shapes; specs: one for all of it, or one for each."""

    def place(leaf, spec):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    if isinstance(specs, P):
        specs = jax.tree.map(lambda _: specs, tree)
    return jax.tree.map(place, tree, specs)


def for_tpu(config: Config) -> Config:
    """The configuration as a TPU would run it: this process computes on something else."""
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, platform="tpu"))
