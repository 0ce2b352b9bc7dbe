"""Checkpoints of a run: parameters, optimizer, data position and what belongs to them.

A thin layer over Orbax. Saves are synchronous and atomic (Orbax writes to a temporary name), so a
process killed at any moment leaves complete checkpoints only; damage that happens later is found on
restore, which falls back to the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from rec2pm_jax import config_dict
from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows, packed_shape, table_rows, take_rows
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.train.step import TrainState
from rec2pm_jax.typing import Params

Meta = dict[str, Any]  # JSON; see `train.loop.Progress` for what a run keeps in it

_log = logging.getLogger(__name__)


class Restored(NamedTuple):
    state: TrainState
    meta: Meta


class Checkpoints:
    """The checkpoints of one workdir: the newest `keep`, and the best by validation.

    Orbax items: `params` and `optimizer` (apart, so that serving reads parameters only), `data`
    (the Grain iterator) and `meta`.
    """

    def __init__(self, workdir: str | Path, keep: int):
        self._directory = _directory(workdir)
        self._keep = keep
        try:
            self._manager = _open(self._directory, create=True)
        except OSError as error:
            raise _cannot_write(self._directory, error) from error

    def save(self, state: TrainState, iterator: grain.DatasetIterator, meta: Meta) -> None:
        """Writes step `meta["step"]`, then removes what is neither new nor `meta["best_step"]`.

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
                    meta=ocp.args.JsonSave({"values": meta, "sha256": _digest(meta)}),
                ),
            )
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # TensorStore's errors of the disk are ValueErrors
            raise _cannot_write(self._directory / str(step), error) from error
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
        """Restores the newest readable checkpoint and moves `iterator` to its position.

        Unreadable newer ones are reported and moved to `<workdir>/unreadable_checkpoints/`.

        Args:
          abstract_state: shapes, dtypes and shardings to restore into, of a checkpoint's meta.
          iterator: of the same data pipeline; its position is changed in place.
          check: raises UserError where a checkpoint belongs to another run; called before any
            array is read.

        Returns:
          The state and its meta, or None where there is no checkpoint at all.

        Raises:
          UserError: no checkpoint is readable, or `check` refuses.
        """
        unreadable: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored = None
            try:
                meta = _read_meta(self._manager, step)
                check(meta)
                abstract = abstract_state(meta)
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardRestore(abstract.params),
                        optimizer=ocp.args.StandardRestore((abstract.step, abstract.opt_state)),
                    ),
                )
                iterator.set_state(_data_position(self._directory / str(step)))
            except UserError:
                raise
            except Exception as error:  # a damaged file can raise anything, in several libraries
                _warn_unreadable(self._directory / str(step), error)
                restored = None
            if not _everybody(restored is not None):
                unreadable.append(step)
                continue
            self._set_aside(unreadable)
            count, opt_state = restored["optimizer"]
            return Restored(TrainState(count, restored["params"], opt_state), meta)
        if unreadable:
            raise _none_readable(self._directory)
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Frees the names of unreadable steps, which training is about to reach again."""
        for step in steps if jax.process_index() == 0 else ():
            target = self._directory.parent / "unreadable_checkpoints" / str(step)
            if target.exists():
                shutil.rmtree(target)
            target.parent.mkdir(exist_ok=True)
            shutil.move(self._directory / str(step), target)
        if steps:
            _everybody(True)  # the files have moved before anybody looks again
            self._manager.reload()

    def close(self) -> None:
        self._manager.close()


def load_for_inference(workdir: str | Path, which: str = "best") -> tuple[Config, Params, Meta]:
    """Reads a trained model: its config, parameters and meta (`step`, `num_items`, hashes, ...).

    Args:
      workdir: of a training run, finished or not.
      which: `best` (by validation NDCG@10) or `latest`.

    A sharded item table comes back whole, in the order of ids.

    Raises:
      UserError: no checkpoint, nothing readable, or `best` before the first validation.
    """
    directory = _directory(workdir)
    if which not in ("best", "latest"):
        raise UserError(f'which={which!r} is unknown; choose "best" or "latest".')
    if not directory.is_dir():
        raise UserError(f"{workdir} holds no checkpoint; train it first with launch.train.")
    manager = _open(directory, create=False)
    try:
        step = latest = _newest_readable(manager, directory)
        if which == "best":
            step = _read_meta(manager, latest)["best_step"]
            if step is None:
                raise UserError(
                    f"{workdir} has no best checkpoint yet (no validation so far); ask for the "
                    "latest, or let training reach config.train.eval_every."
                )
        try:
            meta = _read_meta(manager, step)
            config = config_dict.from_dict(config_dict.as_stored(meta["config"]))
            method = make_method(config, meta["num_items"])
            abstract = abstract_with_sharding(jax.eval_shape(method.init, jax.random.key(0)))
            if config.model.table == "sharded":
                shape = packed_shape(table_rows(meta["num_items"]), config.item_dim)
                abstract = _with_table(
                    abstract,
                    lambda t: jax.ShapeDtypeStruct(shape, t.dtype, sharding=t.sharding),
                )
            restored = manager.restore(
                step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
            )
        except UserError:
            raise
        except Exception as error:  # as in `Checkpoints.restore`
            raise UserError(
                f"Checkpoint {directory / str(step)} is unreadable ({_first_line(error)}); use "
                "the other of best and latest, or train again."
            ) from error
    finally:
        manager.close()
    params = restored["params"]
    if config.model.table == "sharded":  # back to the order of ids
        ids = jnp.arange(meta["num_items"] + 1, dtype=jnp.int32)
        rows = ids_to_rows(ids, table_rows(meta["num_items"]))
        params = _with_table(params, lambda table: take_rows(table, rows, config.item_dim))
    return config, params, meta


def _with_table(params: Params, change: Callable[[Any], Any]) -> Params:
    embedding = params["embedding"]
    return {**params, "embedding": {**embedding, TABLE: change(embedding[TABLE])}}


def _data_position(checkpoint: Path) -> dict[str, Any]:
    """The Grain state: how many batches were taken, the same for every process of the job.

    So whatever process wrote it serves for any other, and for another number of processes.
    """
    files = sorted((checkpoint / "data").glob("process_*.json"))
    if not files:
        raise ValueError("the position in the data is missing")
    return json.loads(files[0].read_text())


def abstract_with_sharding(tree: Any) -> Any:
    """Places the shapes of `tree` on the first local device, as Orbax wants to be told."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _directory(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / "checkpoints"


def _open(directory: Path, create: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        create=create,
        read_only=not create,
        cleanup_tmp_directories=create,
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(directory, options=options)


def _read_meta(manager: ocp.CheckpointManager, step: int) -> Meta:
    stored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    # A flipped byte may leave valid JSON behind: only a digest tells.
    if stored["sha256"] != _digest(stored["values"]):
        raise ValueError("meta does not match its checksum")
    return stored["values"]


def _digest(meta: Meta) -> str:
    """SHA-256 of the meta as JSON, so that it survives writing and reading."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _newest_readable(manager: ocp.CheckpointManager, directory: Path) -> int:
    steps = sorted(manager.all_steps(), reverse=True)
    if not steps:
        raise UserError(f"{directory} holds no checkpoint yet; train first with launch.train.")
    for step in steps:
        try:
            _read_meta(manager, step)
            return step
        except Exception as error:  # as in `Checkpoints.restore`
            _warn_unreadable(directory / str(step), error)
    raise _none_readable(directory)


def _everybody(ok: bool) -> bool:
    """Whether `ok` in all processes of the job."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.bool_(ok)).all())


def _cannot_write(path: Path, error: Exception) -> UserError:
    return UserError(
        f"Cannot write {path} ({_first_line(error)}). Older checkpoints are untouched: free some "
        "space, or make it writable, and start the same command again."
    )


def _warn_unreadable(path: Path, error: Exception) -> None:
    reason = _first_line(error)
    _log.warning("Checkpoint %s is unreadable (%s); falling back to the one before.", path, reason)


def _none_readable(directory: Path) -> UserError:
    return UserError(
        f"None of the checkpoints in {directory} is readable (see the warnings above); restore "
        "them from a backup, or start again with another --workdir."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
