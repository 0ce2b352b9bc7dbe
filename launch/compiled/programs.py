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
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.methods.sharded_serving import ShardedServing
from rec2pm_jax.nn.catalogue.sharded_table import check_shards, packed_shape, table_rows
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.training.partition import AXIS, make_program, partition_specs
from rec2pm_jax.typing import Events, Params, State

K = 10  # best items of a read


class Program(NamedTuple):
    """A function to compile, as `jax.jit(function, donate_argnums=donated).lower(*arguments)`.

    Attributes:
      function: what to compile.
      arguments: pytrees of `jax.ShapeDtypeStruct` with shardings over the devices it is for.
      donated: numbers of the arguments whose memory results may take.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()


Builder = Callable[[Config, int, Mesh], Program]  # (config, items, mesh) -> Program


def build_train(config: Config, items: int, mesh: Mesh) -> Program:
    """Return the step that `launch.train` runs on such a mesh, with a whole or a sharded item table.

    Raises:
      UserError: chips and micro-batches do not divide the batch, or the chips cannot share a table.
    """
    _check_users(config, mesh, config.compute.accumulate)
    program = make_program(config, make_method(config, items), mesh)
    return Program(program.step, (program.state, program.batch), donated=(0,))


def build_read(config: Config, items: int, mesh: Mesh) -> Program:
    """Return a read of every user: memory, the longest window of raw events, the best items."""
    method, arguments = _make_serving(config, items, mesh, lambda method: method.read_length)
    if config.model.table == "sharded":
        function = partial(ShardedServing(config, items, AXIS).read_best, K)
        return Program(_over_chips(function, mesh, arguments, (True, True, False)), arguments)

    def request(
        params: Params, state: State, events: Events, valid: jax.Array, time: jax.Array
    ) -> Any:
        readout = method.read(params, state, events, valid, time)
        return method.best(params, readout, K)

    return Program(_over_chips(request, mesh, arguments, (True, True)), arguments)


def build_update(config: Config, items: int, mesh: Mesh) -> Program:
    """Return an update of every user's state, which is donated, with one segment."""
    method, arguments = _make_serving(config, items, mesh, lambda method: config.data.segment)
    function: Callable[..., Any] = method.update
    results: Any = True
    if config.model.table == "sharded":
        function = ShardedServing(config, items, AXIS).update
        results = (True, False)
    return Program(_over_chips(function, mesh, arguments, results), arguments, donated=(1,))


BUILDERS: dict[str, Builder] = {
    "train": build_train,
    "read": build_read,
    "update": build_update,
}


def _make_serving(
    config: Config, items: int, mesh: Mesh, length: Callable[[Any], int]
) -> tuple[Any, tuple[Any, ...]]:
    """Return a method and the arguments of its `update` and `read`, for the users of a batch.

    Args:
      length: method -> events per user.

    Raises:
      UserError: chips do not divide the users, or the chips cannot share a table.
    """
    _check_users(config, mesh, 1)
    method, users = make_method(config, items), config.train.batch_size
    params, specs = _shape_params(config, method, mesh.size)
    state = jax.eval_shape(lambda p: method.init_state(p, users), params)
    n = length(method)
    events: Any = (
        _int32(users, n),
        _int32(users, n) if config.reads_times else None,
        _int32(users, n) if config.model.event_types else None,
    )
    valid = jax.ShapeDtypeStruct((users, n), bool)
    events = Events(*events)
    rest = (_place(x, mesh, P(AXIS)) for x in (state, events, valid, _int32(users)))
    return method, (_place(params, mesh, specs), *rest)


def _shape_params(config: Config, method: Method, shards: int) -> tuple[Params, Params]:
    """Return the shapes of the parameters, and their sharding: only a sharded table is divided."""
    params = jax.eval_shape(method.init, jax.random.key(0))
    if config.model.table != "sharded":
        return params, jax.tree.map(lambda _: P(), params)
    check_shards(shards, method.config.model.dim)
    shape = packed_shape(table_rows(method.num_items), method.config.model.dim)
    table = jax.ShapeDtypeStruct(shape, params["embedding"][TABLE].dtype)
    params = {**params, "embedding": {**params["embedding"], TABLE: table}}
    return params, partition_specs({"params": params})["params"]


def _check_users(config: Config, mesh: Mesh, parts: int) -> None:
    """Raise UserError unless chips and micro-batches divide the users of a batch."""
    users, chips = config.train.batch_size, mesh.size
    if users % (chips * parts):
        raise UserError(
            f"config.train.batch_size={users} must be a multiple of {chips} chips x "
            f"config.compute.accumulate={parts}; --batch_per_chip=N sets it."
        )


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _over_chips(
    function: Callable[..., Any], mesh: Mesh, arguments: tuple[Any, ...], results: Any
) -> Callable[..., Any]:
    """Return `function` on every chip's share of the arguments.

    Args:
      results: for each result, whether it is divided by users.
    """
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=jax.tree.map(lambda x: x.sharding.spec, arguments),
        out_specs=jax.tree.map(lambda divided: P(AXIS) if divided else P(), results),
        check_vma=False,
    )


def _place(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Return shapes with their shardings.

    Args:
      tree: of shapes.
      specs: one for all of the tree, or one for each leaf.
    """

    def place(leaf: jax.ShapeDtypeStruct, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    if isinstance(specs, P):
        specs = jax.tree.map(lambda _: specs, tree)
    return jax.tree.map(place, tree, specs)


def for_tpu(config: Config) -> Config:
    """Return the configuration as a TPU would run it: this process computes on something else."""
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, platform="tpu"))
