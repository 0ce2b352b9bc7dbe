"""Validate during training: every process of a job reads a share of the users.

All processes get the same numbers, so that all of them stop, or save, at the same step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation import sharded_catalogue
from rec2pm_jax.evaluation.histories import EvaluationData, Histories, load_histories
from rec2pm_jax.evaluation.memory_states import compute_memories
from rec2pm_jax.evaluation.metrics import summarize
from rec2pm_jax.evaluation.ranking import rank_targets, read_targets
from rec2pm_jax.evaluation.targets import (
    Targets,
    make_targets,
    plan_rows,
    select_users,
    target_items,
)
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.typing import Params, Readout

_BATCH = 128  # users per compiled call, as in `EvalSpec`


def validate(
    method: Method,
    params: Params,
    dataset: EvaluationData,
    *,
    max_users: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return the metrics on the validation split, as `evaluate` computes them by default.

    Every process of the job makes this call.

    Args:
      method: the method in training.
      params: its parameters on one device of this process (`training.partition.local_replica`); a
        sharded item table stays spread over the devices.
      dataset: a prepared dataset.
      max_users: size of a pseudo-random subset of the users; None for all of them.
      seed: chooses the subset.

    Returns:
      {metric: value}, see `metrics.summarize`.

    Raises:
      UserError: no user has targets, there are fewer users than processes, scores are not finite,
        or the protocol masks seen items and the table is sharded.
    """
    rule = bound_rule(method.config.data, dataset, target_types=method.config.loss.target_types)
    request_time = rule.request_time("validation")
    users, _ = select_users(dataset.lengths, rule, "validation", max_users, seed)
    processes = jax.process_count()
    if len(users) < processes:
        raise UserError(
            f"{len(users)} users for validation and {processes} processes: raise "
            "config.train.eval_users, or start fewer processes."
        )
    users = users[jax.process_index() :: processes]
    histories = load_histories(dataset, users)
    targets = make_targets(histories, rule, "validation")
    if method.config.model.table == "sharded":
        if rule.mask_seen:
            raise UserError(
                f"config.data.protocol={rule.name} leaves out what was seen, which "
                "config.model.table=sharded cannot do; use another protocol."
            )
        item = target_items(histories, targets)
        readout = _read_sharded(method, params, histories, targets, request_time)
        leaves, structure = jax.tree.flatten(readout)
        *leaves, item, user, position = _gather(
            *leaves, item, users[targets.user], targets.position
        )
        readout = jax.tree.unflatten(structure, leaves)
        table = method.network.table(params)
        ranks = sharded_catalogue.ranks(
            method.config.loss, table, method.num_items, readout, item.astype(np.int32)
        )
    else:
        readout = _read(method, params, histories, targets, request_time)
        ranks = rank_targets(method, params, histories, targets, readout, mask_seen=rule.mask_seen)
        ranks, user, position = _gather(ranks, users[targets.user], targets.position)
    order = np.lexsort((position, user))  # sums in one order, however many processes there are
    return summarize(ranks[order], user[order], sets=rule.predicts_sets)


def _read(
    method: Method,
    params: Params,
    histories: Histories,
    targets: Targets,
    request_time: int | None,
) -> Readout:
    """Return what predicts each target, as numpy arrays of T rows."""
    rows = plan_rows(targets, method, None)
    memory = method.memory_kind
    states = compute_memories(method, params, histories, rows, memory, _BATCH)
    return read_targets(
        method, params, histories, rows, states, batch_size=_BATCH, request_time=request_time
    )


def _read_sharded(
    method: Method,
    params: Params,
    histories: Histories,
    targets: Targets,
    request_time: int | None,
) -> Readout:
    """Do as `_read` over a small catalogue: the items of `histories`, fetched from a sharded table.

    Own items are padded to the most that a read has, so that all processes have equally many.
    """
    items, ids = np.unique(histories.ids, return_inverse=True)
    items = np.append(0, items).astype(np.int32)
    table, dim = method.network.table(params), method.config.model.dim
    rows = sharded_catalogue.fetch_rows(table, items, dim)
    own_params = method.network.with_table(params, jnp.asarray(rows))
    own_histories = histories._replace(ids=(ids.reshape(-1) + 1).astype(np.int32))
    own_method = make_method(method.config, len(items) - 1)
    vectors, own = _read(own_method, own_params, own_histories, targets, request_time)
    if own is not None:
        room = method.memory.entries + method.read_length - own.ids.shape[1]
        own = jax.tree.map(
            lambda a: np.pad(a, ((0, 0), (0, room))), own._replace(ids=items[own.ids])
        )
    return Readout(vectors, own)


def _gather(*arrays: np.ndarray) -> list[np.ndarray]:
    """Concatenate each of the arrays [T, ...] over the processes, whose T may differ."""
    if jax.process_count() == 1:
        return list(arrays)
    counts = multihost_utils.process_allgather(np.int32(len(arrays[0])))
    width = int(counts.max())
    gathered = []
    for array in arrays:
        # JAX would cut 64 bits to 32; the numbers here are indices and ranks below 2^31.
        array = array.astype(np.int32) if array.dtype == np.int64 else array
        padded = np.pad(array, ((0, width - len(array)),) + ((0, 0),) * (array.ndim - 1))
        parts = multihost_utils.process_allgather(padded)
        kept = [part[:count] for part, count in zip(parts, counts, strict=True)]
        gathered.append(np.concatenate(kept))
    return gathered
