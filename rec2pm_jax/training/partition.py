"""Compile a training step for one device, for a mesh of devices, or for `pmap`.

The mesh has one axis. It cuts the batch, and the rows of the item table if `config.model.table` is
"sharded". Everything else is replicated. `RULES` states this by parameter name, and is the only place
that does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rec2pm_jax.config import Config
from rec2pm_jax.devices import select_devices
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.method import Method
from rec2pm_jax.nn.item_features import ItemContent
from rec2pm_jax.training.checkpoint_store import abstract_with_sharding
from rec2pm_jax.training.optimizer import make_dense_optimizer, make_optimizer
from rec2pm_jax.training.sharded_step import init_sharded_state, make_sharded_step
from rec2pm_jax.training.step import (
    Metrics,
    TrainState,
    TrainStep,
    init_train_state,
    make_train_step,
)
from rec2pm_jax.typing import Batch, Params

AXIS = "devices"

# The parts of a state that are cut into rows with a sharded table: (pattern of the name, spec).
# The rest is P().
RULES = (
    (r"^params/embedding/item_embedding$", P(AXIS)),
    (r"^opt_state/table/accumulator$", P(AXIS)),
)


class Partition(NamedTuple):
    """A compiled step, and the conversion of states to its layout and back.

    Attributes:
      step: (state, this process's part of the batch as numpy arrays) -> (state, metrics). The given
        state is donated.
      init: () -> the state before the first step, in the layout of `step`.
      abstract: shapes, dtypes and shardings of a state in a checkpoint.
      place: converts a state from a checkpoint to the layout of `step`.
      gather: converts a state from the layout of `step` to that of a checkpoint.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    init: Callable[[], TrainState]
    abstract: TrainState
    place: Callable[[TrainState], TrainState]
    gather: Callable[[TrainState], TrainState]


class Program(NamedTuple):
    """A training step over a mesh, not compiled yet. The devices may be those of a topology.

    Attributes:
      step: jitted (state, batch) -> (state, metrics); the state is donated.
      init: jitted () -> state.
      state: `jax.ShapeDtypeStruct`s with shardings, of the whole job.
      batch: `jax.ShapeDtypeStruct`s with shardings, of the whole job.
      mesh: the devices.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    init: Callable[[], TrainState]
    state: TrainState
    batch: Batch
    mesh: Mesh


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of one axis; the devices of a process are neighbours.

    Args:
      devices: None for all devices of the job.
    """
    devices = jax.devices() if devices is None else devices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    auto = (jax.sharding.AxisType.Auto,)
    return Mesh(np.array(ordered), (AXIS,), axis_types=auto)


def partition_specs(tree: Any) -> Any:
    """Return the PartitionSpecs of a state over a sharded table, by `RULES`.

    Args:
      tree: {"params": ..} or a `TrainState`.
    """

    def spec(path: Any, _: Any) -> P:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return next((spec for rule, spec in RULES if re.search(rule, name)), P())

    return jax.tree_util.tree_map_with_path(spec, tree)


def make_program(
    config: Config, method: Method, mesh: Mesh, content: ItemContent | None = None
) -> Program:
    """Return the step of `config` over `mesh`; nothing is computed.

    Args:
      config: the whole configuration.
      method: the method to train.
      mesh: the devices, which may be those of a topology.
      content: of the items, for `config.model.item_features`.

    Raises:
      UserError: the devices cannot share the batch or the table.
    """
    shards = mesh.size
    _check_divides(config, shards, "config.compute.devices")
    functions = _make_functions(config, method, shards, content)
    local = jax.eval_shape(functions.init)
    sharded = config.model.table == "sharded"
    specs = partition_specs(local) if sharded else jax.tree.map(lambda _: P(), local)
    # Replicated results are equal on all devices by construction: sums over the axis.
    mapped = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    init = mapped(functools.partial(functions.init, axis_name=AXIS), in_specs=(), out_specs=specs)
    step = mapped(
        functools.partial(functions.step, axis_name=AXIS),
        in_specs=(specs, P(AXIS)),
        out_specs=(specs, P()),
    )

    def place(leaf: jax.ShapeDtypeStruct, spec: P) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(place, jax.eval_shape(init), specs)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return Program(
        jax.jit(step, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, P()))),
        jax.jit(init, out_shardings=shardings),
        state,
        jax.tree.map(lambda leaf: place(leaf, P(AXIS)), _abstract_batch(config)),
        mesh,
    )


def make_partition(config: Config, method: Method, content: ItemContent | None = None) -> Partition:
    """Return the step for `config.train.partition` and `config.compute.devices`.

    "jit" on one device is the plain step. On several devices, and for a sharded table always, it is
    the same step under `jax.shard_map` over a mesh. "pmap" divides the batch over the local devices.

    Args:
      config: the whole configuration.
      method: the method to train.
      content: of the items, for `config.model.item_features`.

    Raises:
      UserError: devices and micro-batches do not divide the batch, there are fewer devices than asked
        for, several processes and not all of their devices, or content that is absent.
    """
    if config.train.partition == "pmap":
        return _pmap_partition(config, method, content)
    devices = select_devices(config.compute)
    if len(devices) == 1 and config.model.table == "whole":
        return _plain_partition(_make_functions(config, method, 1, content))
    return _mesh_partition(make_program(config, method, make_mesh(devices), content))


def local_replica(params: Params) -> Params:
    """Return params for work on one device of this process.

    Replicated arrays become their copy on that device. Arrays that a mesh axis cuts stay as they
    are.
    """

    def copy(leaf: jax.Array) -> jax.Array:
        cut = isinstance(leaf.sharding, NamedSharding) and any(leaf.sharding.spec)
        return leaf if cut else leaf.addressable_data(0)

    return jax.tree.map(copy, params)


class _Functions(NamedTuple):
    """The pure functions of one device: init(axis_name=..) and a train step."""

    init: Callable[..., TrainState]
    step: TrainStep


def _make_functions(
    config: Config, method: Method, shards: int, content: ItemContent | None
) -> _Functions:
    """Return the pure functions of one of `shards` devices."""
    train = config.train
    if config.model.item_features and content is None:
        raise UserError(
            "config.model.item_features needs the items of a dataset; set it to 0 here."
        )
    if config.model.table == "sharded":
        optimizer = make_dense_optimizer(config.optim, train.steps)
        return _Functions(
            functools.partial(init_sharded_state, method, optimizer, train.seed, shards),
            make_sharded_step(config, method.num_items, shards, optimizer),
        )
    optimizer = make_optimizer(config.optim, train.steps)

    def init(axis_name: str | None = None) -> TrainState:
        return init_train_state(method, optimizer, train.seed, content)

    step = make_train_step(method, optimizer, train.seed, config.compute.accumulate, content)
    return _Functions(init, step)


def _check_divides(config: Config, devices: int, flag: str) -> None:
    """Raise UserError unless devices and micro-batches divide the batch."""
    size, accumulate = config.train.batch_size, config.compute.accumulate
    if size % (devices * accumulate):
        raise UserError(
            f"config.train.batch_size={size} must be a multiple of {devices} devices x "
            f"config.compute.accumulate={accumulate} with {flag}."
        )


def _plain_partition(functions: _Functions) -> Partition:
    """Return the step for one device."""
    return Partition(
        jax.jit(functions.step, donate_argnums=0),
        jax.jit(functions.init),
        abstract_with_sharding(jax.eval_shape(functions.init)),
        lambda state: state,
        lambda state: state,
    )


def _mesh_partition(program: Program) -> Partition:
    """Return the step for a mesh of devices."""
    by_example = NamedSharding(program.mesh, P(AXIS))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        put = functools.partial(jax.make_array_from_process_local_data, by_example)
        return program.step(state, jax.tree.map(put, batch))

    return Partition(step, program.init, program.state, lambda s: s, lambda s: s)


def _pmap_partition(config: Config, method: Method, content: ItemContent | None) -> Partition:
    """Return the step for all devices of one process, under `pmap`."""
    devices = jax.local_device_count()
    _check_divides(config, devices, "config.train.partition=pmap")
    if jax.process_count() > 1:
        raise UserError("config.train.partition=pmap is for one process; use jit for several.")
    functions = _make_functions(config, method, 1, content)
    compiled = jax.pmap(
        functools.partial(functions.step, axis_name=AXIS), axis_name=AXIS, donate_argnums=0
    )
    copy = jax.pmap(lambda _, state: state, in_axes=(0, None))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        divided = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
        state, metrics = compiled(state, divided)
        return state, jax.tree.map(lambda x: x[0], metrics)

    def place(state: TrainState) -> TrainState:
        return copy(jnp.arange(devices), state)

    return Partition(
        step,
        lambda: place(jax.jit(functions.init)()),
        abstract_with_sharding(jax.eval_shape(functions.init)),
        place,
        gather=lambda state: jax.tree.map(lambda x: x[0], state),
    )


def _abstract_batch(config: Config) -> Batch:
    """Return the shapes of a whole job's batch (see `Method.loss`), with the columns in use."""
    size, shape = config.train.batch_size, (config.train.batch_size, config.data.window + 1)
    dtypes: dict[str, Any] = {"ids": jnp.int32}
    dtypes |= {"times": jnp.int32} if config.reads_times else {}
    dtypes |= {"types": jnp.int32} if config.model.event_types else {}
    dtypes |= {"weights": jnp.float32} if config.loss.target_types is not None else {}
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in dtypes.items()}
    return batch | {"index": jax.ShapeDtypeStruct((size,), jnp.int32)}
