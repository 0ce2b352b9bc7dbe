"""The files of a checkpoint directory: open it, read what belongs to a step, report damage."""

from __future__ import annotations

import errno
import glob
import hashlib
import itertools
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from rec2pm_jax.errors import UserError
from rec2pm_jax.os_errors import check_path, write_error

Meta = dict[str, Any]  # JSON; `training.loop` decides what a run keeps in it

_log = logging.getLogger(__name__)


def checkpoint_directory(workdir: str | Path) -> Path:
    """Return the directory that holds the checkpoints of a run.

    Raises:
      UserError: no file can have that path.
    """
    check_path(workdir)
    return Path(workdir).absolute() / "checkpoints"


def open_manager(directory: Path, create: bool) -> ocp.CheckpointManager:
    """Open the checkpoints in `directory`, for writing if `create`, else read-only.

    Raises:
      UserError: `create`, and Orbax could not read what it writes there.
      OSError: the directory cannot be made.
    """
    if create and glob.escape(str(directory)) != str(directory):
        raise UserError(
            f"{directory} holds one of [ * ?, which Orbax takes for a pattern: it could not read its "
            "own checkpoints there. Choose another --workdir."
        )
    if create and jax.process_index() == 0:
        # Orbax could do this, too, but in a thread that `close` does not wait for.
        for unfinished in directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            _remove_unfinished(unfinished)
    options = ocp.CheckpointManagerOptions(
        create=create,
        read_only=not create,
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(directory, options=options)


def _remove_unfinished(directory: Path) -> None:
    """Delete what a save left behind that failed; its threads may still write for a moment."""
    for attempt in itertools.count():
        try:
            return shutil.rmtree(directory)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or attempt == 50:
                raise
            time.sleep(0.1)


def abstract_with_sharding(tree: Any) -> Any:
    """Return the shapes of `tree` placed on the first local device, as Orbax needs them."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def meta_args(meta: Meta) -> ocp.args.JsonSave:
    """Return what Orbax is given to save `meta` with a checksum."""
    return ocp.args.JsonSave({"values": meta, "sha256": _digest(meta)})


def read_meta(manager: ocp.CheckpointManager, step: int) -> Meta:
    """Read the meta of a step.

    Raises:
      ValueError: the file is valid JSON but does not match its checksum. Other errors come from
        Orbax, which may raise anything for a damaged file.
    """
    stored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    # A flipped byte may leave valid JSON behind: only a digest tells.
    if stored["sha256"] != _digest(stored["values"]):
        raise ValueError("meta does not match its checksum")
    return stored["values"]


def _digest(meta: Meta) -> str:
    """Return the SHA-256 of the meta as JSON, so that it survives writing and reading."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def read_data_position(checkpoint: Path) -> dict[str, Any]:
    """Read the Grain state: how many batches were taken, the same for every process of the job.

    So the file of any process serves every other process, and another number of processes.

    Raises:
      ValueError: there is no such file, or it is no JSON.
    """
    files = sorted((checkpoint / "data").glob("process_*.json"))
    if not files:
        raise ValueError("the position in the data is missing")
    return json.loads(files[0].read_text())


def newest_readable(manager: ocp.CheckpointManager, directory: Path) -> int:
    """Return the newest step whose meta can be read.

    Raises:
      UserError: there is no checkpoint, or none is readable.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    if not steps:
        raise UserError(f"{directory} holds no checkpoint yet; train first with launch.train.")
    for step in steps:
        try:
            read_meta(manager, step)
            return step
        except Exception as error:  # a damaged file can raise anything, in several libraries
            warn_unreadable(directory / str(step), error)
    raise none_readable_error(directory)


def true_in_all_processes(ok: bool) -> bool:
    """Return whether `ok` is true in every process of the job; all of them make this call."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.bool_(ok)).all())


def warn_unreadable(path: Path, error: Exception) -> None:
    """Log that a checkpoint is damaged and the one before it is tried."""
    reason = first_line(error)
    _log.warning("Checkpoint %s is unreadable (%s); falling back to the one before.", path, reason)


def cannot_write_error(path: Path, error: Exception) -> UserError:
    """Return the error for a checkpoint that cannot be written."""
    advice = "Older checkpoints are untouched; the same command continues from the newest."
    return write_error(path, error, advice)


def none_readable_error(directory: Path) -> UserError:
    """Return the error for a directory whose checkpoints are all damaged."""
    return UserError(
        f"None of the checkpoints in {directory} is readable (see the warnings above); restore "
        "them from a backup, or start again with another --workdir."
    )


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
