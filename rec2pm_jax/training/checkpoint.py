"""Checkpoints of a run: parameters, optimizer, position in the data, and meta.

A thin layer over Orbax. Saves are synchronous and atomic (Orbax writes to a temporary name), so a
process killed at any moment leaves complete checkpoints only. Damage that happens later is found on
restore, which falls back to the checkpoint before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows, packed_shape, table_rows, take_rows
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.nn.item_features import abstract_content
from rec2pm_jax.training.checkpoint_store import (
    Meta,
    abstract_with_sharding,
    cannot_write_error,
    checkpoint_directory,
    first_line,
    meta_args,
    newest_readable,
    none_readable_error,
    open_manager,
    read_data_position,
    read_meta,
    true_in_all_processes,
    warn_unreadable,
)
from rec2pm_jax.training.partition import local_replica, make_mesh, partition_specs
from rec2pm_jax.training.run_checks import read_stored_config
from rec2pm_jax.training.step import TrainState
from rec2pm_jax.typing import Params

VECTOR_LENGTH = "item_vector_length"  # in the meta of models that read content
FindDevices = Callable[[Config], Sequence[jax.Device] | None]
KEPT_CHECKPOINTS = 2  # the newest ones, beside the best


class Restored(NamedTuple):
    """What a checkpoint holds, apart from the position in the data."""

    state: TrainState
    meta: Meta


class Checkpoints:
    """The checkpoints of one workdir: the newest `keep`, and the best by validation.

    Orbax items: `params` and `optimizer` (separate, so that serving reads parameters only), `data`
    (the Grain iterator) and `meta`.
    """

    def __init__(self, workdir: str | Path, keep: int = KEPT_CHECKPOINTS) -> None:
        self._directory = checkpoint_directory(workdir)
        self._keep = keep
        try:
            self._manager = open_manager(self._directory, create=True)
        except OSError as error:
            raise cannot_write_error(self._directory, error) from error

    def save(self, state: TrainState, iterator: grain.DatasetIterator, meta: Meta) -> None:
        """Write the checkpoint of step `meta["step"]`, then remove the ones to drop.

        Kept are the newest ones and that of step `meta["best_step"]`.

        Args:
          state: in the layout of `Partition.gather`.
          iterator: its position is saved.
          meta: JSON values, `step` and `best_step` among them.

        Raises:
          UserError: it cannot be written (a full disk, no permission); nothing older is removed.
        """
        step = meta["step"]
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave((state.step, state.opt_state)),
                    data=grain.checkpoint.CheckpointSave(iterator),
                    meta=meta_args(meta),
                ),
            )
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # TensorStore's errors of the disk are ValueErrors
            raise cannot_write_error(self._directory / str(step), error) from error
        steps = sorted(self._manager.all_steps())
        for old in steps[: -self._keep]:
            if old != meta["best_step"]:
                self._manager.delete(old)

    def restore(
        self,
        abstract_state: Callable[[Meta], TrainState],
        iterator: grain.DatasetIterator,
        check: Callable[[Meta], None],
    ) -> Restored | None:
        """Restore the newest readable checkpoint and move `iterator` to its position.

        Unreadable newer ones are reported and moved to `<workdir>/unreadable_checkpoints/`.

        Args:
          abstract_state: the shapes, dtypes and shardings to restore into, given the meta.
          iterator: of the same data pipeline; its position is changed in place.
          check: raises UserError for a checkpoint of another run; called before any array is read.

        Returns:
          The state and its meta, or None if there is no checkpoint at all.

        Raises:
          UserError: no checkpoint is readable, or `check` refuses.
        """
        unreadable: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored: Any = None
            try:
                meta = read_meta(self._manager, step)
                check(meta)
                abstract = abstract_state(meta)
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardRestore(abstract.params),
                        optimizer=ocp.args.StandardRestore((abstract.step, abstract.opt_state)),
                    ),
                )
                iterator.set_state(read_data_position(self._directory / str(step)))
            except UserError:
                raise
            except Exception as error:  # a damaged file can raise anything, in several libraries
                warn_unreadable(self._directory / str(step), error)
                restored = None
            if not true_in_all_processes(restored is not None):
                unreadable.append(step)
                continue
            self._set_aside(unreadable)
            count, opt_state = restored["optimizer"]
            return Restored(TrainState(count, restored["params"], opt_state), meta)
        if unreadable:
            raise none_readable_error(self._directory)
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Move unreadable steps out of the way: training will reach their numbers again."""
        for step in steps if jax.process_index() == 0 else ():
            target = self._directory.parent / "unreadable_checkpoints" / str(step)
            if target.exists():
                shutil.rmtree(target)
            target.parent.mkdir(exist_ok=True)
            shutil.move(self._directory / str(step), target)
        if steps:
            true_in_all_processes(True)  # wait until process 0 has moved the files
            self._manager.reload()

    def close(self) -> None:
        """Release the files."""
        self._manager.close()


def load_for_inference(
    workdir: str | Path, which: str = "best", find_devices: FindDevices | None = None
) -> tuple[Config, Params, Meta]:
    """Read a trained model.

    Args:
      workdir: directory of a training run, complete or not.
      which: "best" (by validation NDCG@10) or "latest".
      find_devices: chooses the devices that a sharded item table is spread over; every process of the
        job makes this call then. None: it comes back whole.

    Returns:
      The configuration, the parameters on one device of this process, and the meta (`step`,
      `num_items`, hashes and more). A sharded item table comes back whole, in the order of ids. With
      `find_devices` it comes back as it was trained: over a mesh, packed, never whole in one place.

    Raises:
      UserError: there is no checkpoint, none is readable, or `best` is asked for before the first
        validation.
    """
    directory = checkpoint_directory(workdir)
    if which not in ("best", "latest"):
        raise UserError(f'which={which!r} is unknown; choose "best" or "latest".')
    if not directory.is_dir():
        raise UserError(f"{workdir} holds no checkpoint; train it first with launch.train.")
    manager = open_manager(directory, create=False)
    try:
        step = newest_readable(manager, directory)
        if which == "best":
            step = read_meta(manager, step)["best_step"]
            if step is None:
                raise UserError(
                    f"{workdir} has no best checkpoint yet (no validation so far); ask for the "
                    "latest, or let training reach config.train.eval_every."
                )
        try:
            return _read_model(manager, step, find_devices)
        except UserError:
            raise
        except Exception as error:  # as in `Checkpoints.restore`
            raise UserError(
                f"Checkpoint {directory / str(step)} is unreadable ({first_line(error)}); use "
                "the other of best and latest, or train again."
            ) from error
    finally:
        manager.close()


def _read_model(
    manager: ocp.CheckpointManager, step: int, find_devices: FindDevices | None
) -> tuple[Config, Params, Meta]:
    """Read configuration, parameters and meta of a step; a damaged file can raise anything."""
    meta = read_meta(manager, step)
    config = read_stored_config(meta, Path(manager.directory).parent)
    method = make_method(config, meta["num_items"])
    params = jax.eval_shape(method.init, jax.random.key(0))
    if values := config.model.item_features:
        params = abstract_content(params, values, meta[VECTOR_LENGTH])
    sharded, rows = config.model.table == "sharded", table_rows(meta["num_items"])
    if sharded:
        shape = packed_shape(rows, method.config.model.dim)
        params = _with_table(params, lambda table: jax.ShapeDtypeStruct(shape, table.dtype))
    devices = None if find_devices is None else find_devices(config)
    spread = sharded and devices is not None
    if spread or jax.process_count() > 1:
        abstract = _abstract_on_mesh(params, make_mesh(devices if spread else None), spread)
    else:
        abstract = abstract_with_sharding(params)
    restored: Any = manager.restore(
        step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
    )
    params = local_replica(restored["params"])
    if sharded and not spread:  # back to the order of ids
        at = ids_to_rows(jnp.arange(meta["num_items"] + 1, dtype=jnp.int32), rows)
        params = _with_table(params, lambda table: take_rows(table, at, method.config.model.dim))
    return config, params, meta


def _abstract_on_mesh(params: Params, mesh: Mesh, spread: bool) -> Params:
    """Return shapes placed on a mesh: replicated, but for the item table if it is to be `spread`."""
    specs = partition_specs({"params": params})["params"]

    def place(leaf: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, spec if spread else PartitionSpec())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, params, specs)


def _with_table(params: Params, change: Callable[[Any], Any]) -> Params:
    """Return params with a changed item table."""
    embedding = params["embedding"]
    return {**params, "embedding": {**embedding, TABLE: change(embedding[TABLE])}}
