"""Where the parts of a training step live: on one device, on a mesh of devices, or under `pmap`.

The mesh has one axis, which cuts the batch and, where the item table is sharded, its rows; everything
else is replicated. `RULES` says so by parameter name, and this is the only place that does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.method import Method
from rec2pm_jax.train.checkpoint import abstract_with_sharding
from rec2pm_jax.train.optimizer import make_dense_optimizer, make_optimizer
from rec2pm_jax.train.sharded_step import init_sharded_state, make_sharded_step
from rec2pm_jax.train.step import (
    Metrics,
    TrainState,
    TrainStep,
    init_train_state,
    make_train_step,
)
from rec2pm_jax.typing import Batch, Params

AXIS = "devices"

# Of a sharded table's state, what is cut into rows: (pattern of the name, spec). The rest is P().
RULES = (
    (r"^params/embedding/item_embedding$", P(AXIS)),
    (r"^opt_state/table/accumulator$", P(AXIS)),
)


class Partition(NamedTuple):
    """A compiled step, the way into its layout, and the way out.

    Attributes:
      step: (state, batch of numpy arrays, this process's part) -> (state, metrics). The given state
        is donated.
      init: () -> the state before the first step, in the layout of `step`.
      abstract: shapes, dtypes and shardings of what a checkpoint holds.
      place: a state as a checkpoint holds it -> the layout of `step`.
      gather: the layout of `step` -> what a checkpoint holds.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    init: Callable[[], TrainState]
    abstract: TrainState
    place: Callable[[TrainState], TrainState]
    gather: Callable[[TrainState], TrainState]


class Program(NamedTuple):
    """A training step over a mesh that no device has seen yet.

    Attributes:
      step: jitted (state, batch) -> (state, metrics); the state is donated.
      init: jitted () -> state.
      state, batch: `jax.ShapeDtypeStruct`s with shardings, of the whole job.
      mesh: the devices.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    init: Callable[[], TrainState]
    state: TrainState
    batch: Batch
    mesh: Mesh


def make_mesh(devices=None) -> Mesh:
    """One axis over `devices` (all of the job by default), those of a process side by side."""
    devices = jax.devices() if devices is None else devices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    auto = (jax.sharding.AxisType.Auto,)
    return Mesh(np.array(ordered), (AXIS,), axis_types=auto)


def specs_of(tree: Params) -> Params:
    """PartitionSpecs of a state over a sharded table, by `RULES`."""

    def spec(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return next((spec for rule, spec in RULES if re.search(rule, name)), P())

    return jax.tree_util.tree_map_with_path(spec, tree)


def make_program(config: Config, method: Method, mesh: Mesh) -> Program:
    """The step of `config` over `mesh`; nothing is computed, and the devices may be a topology's.

    Raises:
      UserError: the devices cannot share the batch or the table.
    """
    shards = mesh.size
    _check_divides(config, shards, "config.compute.devices")
    parts = _parts(config, method, shards)
    local = jax.eval_shape(parts.init)
    specs = (
        specs_of(local) if config.model.table == "sharded" else jax.tree.map(lambda _: P(), local)
    )
    # Replicated results are equal on all devices by construction: sums over the axis.
    mapped = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    init = mapped(functools.partial(parts.init, axis_name=AXIS), in_specs=(), out_specs=specs)
    step = mapped(
        functools.partial(parts.step, axis_name=AXIS),
        in_specs=(specs, P(AXIS)),
        out_specs=(specs, P()),
    )

    def placed(shapes, specs):
        def place(leaf, spec):
            sharding = NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(place, shapes, specs)

    state, batch = placed(jax.eval_shape(init), specs), _abstract_batch(config)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return Program(
        jax.jit(step, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, P()))),
        jax.jit(init, out_shardings=shardings),
        state,
        placed(batch, jax.tree.map(lambda _: P(AXIS), batch)),
        mesh,
    )


def make_partition(config: Config, method: Method) -> Partition:
    """The step as `config.train.partition` and `config.compute.devices` want it compiled.

    `jit` on one device is the plain step; on several, and for a sharded table always, it is the same
    step under `jax.shard_map` over a mesh. `pmap` divides the batch over the local devices.

    Raises:
      UserError: devices and micro-batches do not divide the batch, there are fewer devices than asked
        for, or several processes and not all of their devices.
    """
    if config.train.partition == "pmap":
        return _pmap_partition(config, method)
    devices = _devices(config)
    if len(devices) == 1 and config.model.table == "whole":
        return _plain_partition(config, method)
    return _mesh_partition(make_program(config, method, make_mesh(devices)))


def local_replica(params: Params) -> Params:
    """Params for work on one device of this process; what a mesh axis cuts stays as it is."""

    def copy(leaf):
        cut = isinstance(leaf.sharding, NamedSharding) and any(leaf.sharding.spec)
        return leaf if cut else leaf.addressable_data(0)

    return jax.tree.map(copy, params)


class _Parts(NamedTuple):
    init: Callable[..., TrainState]
    step: TrainStep


def _parts(config: Config, method: Method, shards: int) -> _Parts:
    """The pure functions of one device: init and step, both with `axis_name`."""
    train = config.train
    if config.model.table == "sharded":
        optimizer = make_dense_optimizer(config.optim, train.steps)
        return _Parts(
            functools.partial(init_sharded_state, method, optimizer, train.seed, shards),
            make_sharded_step(config, method.num_items, shards, optimizer),
        )
    optimizer = make_optimizer(config.optim, train.steps)

    def init(axis_name: str | None = None) -> TrainState:
        return init_train_state(method, optimizer, train.seed)

    return _Parts(init, make_train_step(method, optimizer, train.seed, config.compute.accumulate))


def _devices(config: Config) -> list[jax.Device]:
    wanted, processes = config.compute.devices, jax.process_count()
    if not wanted or wanted == jax.device_count():
        return jax.devices()
    if processes > 1:
        raise UserError(
            f"config.compute.devices={wanted} in a job of {processes} processes: set it to 0, all "
            f"{jax.device_count()} devices of the job."
        )
    if wanted > jax.device_count():
        raise UserError(
            f"config.compute.devices={wanted}, but there are {jax.device_count()} devices."
        )
    return jax.devices()[:wanted]


def _check_divides(config: Config, devices: int, flag: str) -> None:
    size, accumulate = config.train.batch_size, config.compute.accumulate
    if size % (devices * accumulate):
        raise UserError(
            f"config.train.batch_size={size} must be a multiple of {devices} devices x "
            f"config.compute.accumulate={accumulate} with {flag}."
        )


def _plain_partition(config: Config, method: Method) -> Partition:
    parts = _parts(config, method, 1)
    return Partition(
        jax.jit(parts.step, donate_argnums=0),
        jax.jit(parts.init),
        abstract_with_sharding(jax.eval_shape(parts.init)),
        lambda state: state,
        lambda state: state,
    )


def _mesh_partition(program: Program) -> Partition:
    by_example = NamedSharding(program.mesh, P(AXIS))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        put = functools.partial(jax.make_array_from_process_local_data, by_example)
        return program.step(state, jax.tree.map(put, batch))

    return Partition(step, program.init, program.state, lambda s: s, lambda s: s)


def _pmap_partition(config: Config, method: Method) -> Partition:
    devices = jax.local_device_count()
    _check_divides(config, devices, "config.train.partition=pmap")
    if jax.process_count() > 1:
        raise UserError("config.train.partition=pmap is for one process; use jit for several.")
    parts = _parts(config, method, 1)
    compiled = jax.pmap(
        functools.partial(parts.step, axis_name=AXIS), axis_name=AXIS, donate_argnums=0
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
        lambda: place(jax.jit(parts.init)()),
        abstract_with_sharding(jax.eval_shape(parts.init)),
        place,
        gather=lambda state: jax.tree.map(lambda x: x[0], state),
    )


def _abstract_batch(config: Config) -> Batch:
    """Shapes of a whole job's batch, see `Method.loss`, with what the model uses of events."""
    size, model = config.train.batch_size, config.model
    names = ["ids"]
    names += ["times"] if model.relative_bias == "position_time" else []
    names += ["types"] if model.event_types else []
    shape = (size, config.data.window + 1)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in names}
    return batch | {"index": jax.ShapeDtypeStruct((size,), jnp.int32)}
