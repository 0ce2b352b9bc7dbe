"""Validation during training, by all processes of a job: each reads a share of the users.

Metrics are the same numbers in every process, so that all of them stop, or save, at the same step.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluate import sharded_catalogue
from rec2pm_jax.evaluate.evaluator import own_memory, row_memories
from rec2pm_jax.evaluate.metrics import summarize
from rec2pm_jax.evaluate.reading import rank_targets, read_targets
from rec2pm_jax.evaluate.targets import (
    Histories,
    Targets,
    load_histories,
    make_targets,
    plan_rows,
    select_users,
)
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.typing import Params

_BATCH = 128  # users per compiled call, as in `evaluate`


def validate(
    method: Method, params: Params, dataset, *, max_users: int = 0, seed: int = 0
) -> dict[str, float]:
    """Metrics on the validation split, as `evaluate` computes them with the method's own memory.

    Args:
      params: on one device of this process (`train.partition.local_replica`), but a sharded item table.
      max_users: 0, or the size of a pseudo-random subset of users fixed by `seed`.

    Raises:
      UserError: nobody has targets, there are fewer users than processes, scores are not finite, or
        the protocol masks seen items and the table is sharded.
    """
    rule = bound_rule(method.config.data, dataset)
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
    item = histories.ids[histories.offsets[targets.user] + targets.position]
    if method.config.model.table == "sharded":
        if rule.mask_seen:
            raise UserError(
                f"config.data.protocol={rule.name} leaves out what was seen, which "
                "config.model.table=sharded cannot do; use another protocol."
            )
        vectors = _read(*_rows_in_use(method, params, histories), targets)
        vectors, item, user, position = _gather(
            vectors, item, users[targets.user], targets.position
        )
        table = method.network.table(params)
        ranks = sharded_catalogue.ranks(
            method.config.loss, table, method.num_items, vectors, item.astype(np.int32)
        )
    else:
        vectors = _read(method, params, histories, targets)
        ranks = rank_targets(method, params, histories, targets, vectors, mask_seen=rule.mask_seen)
        ranks, user, position = _gather(ranks, users[targets.user], targets.position)
    order = np.lexsort((position, user))  # one order of sums, however many processes
    return summarize(ranks[order], user[order])


def _read(method: Method, params: Params, histories: Histories, targets: Targets) -> np.ndarray:
    """The vector that predicts each target: float32 [T, W]."""
    rows = plan_rows(targets, method, 0)
    memory = own_memory(method.config)
    states = row_memories(method, params, histories, rows, memory, _BATCH)
    return read_targets(method, params, histories, rows, states, batch_size=_BATCH)


def _rows_in_use(
    method: Method, params: Params, histories: Histories
) -> tuple[Method, Params, Histories]:
    """The same over a small catalogue: the items of `histories` alone, numbered anew."""
    items, ids = np.unique(histories.ids, return_inverse=True)
    table, dim = method.network.table(params), method.config.item_dim
    rows = sharded_catalogue.lookup(table, np.append(0, items), dim)
    small = method.network.with_table(params, jax.numpy.asarray(rows))
    histories = histories._replace(ids=(ids.reshape(-1) + 1).astype(np.int32))
    return make_method(method.config, len(items)), small, histories


def _gather(*arrays: np.ndarray) -> list[np.ndarray]:
    """Concatenates each of the arrays [T, ...], T differing, over the processes."""
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
