"""Offline evaluation of one method with one kind of memory: ranks, metrics, and the swap test."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from rec2pm_jax.data.splits import SplitRule, bound_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluate.memories import iterated_memories, one_time_memories, swap_donors, take
from rec2pm_jax.evaluate.metrics import summarize
from rec2pm_jax.evaluate.reading import rank_targets, read_targets
from rec2pm_jax.evaluate.record import Evaluation, dataset_name
from rec2pm_jax.evaluate.targets import (
    Histories,
    Rows,
    Targets,
    load_histories,
    make_targets,
    plan_rows,
    select_users,
)
from rec2pm_jax.methods.codec import check_format, slot_bytes
from rec2pm_jax.typing import State


def own_memory(config) -> str:
    """The memory a method serves with: none for full and recent, else `config.method.memory`."""
    return "none" if config.method.name in ("full", "recent") else config.method.memory


def check_memory(method, memory: str) -> None:
    """Raises UserError unless `method` can be evaluated with `memory`."""
    own = own_memory(method.config)
    possible = (own, "one_time") if hasattr(method, "compress") else (own,)
    if memory not in possible:
        raise UserError(
            f"memory={memory!r} does not fit method {method.config.method.name} as it is "
            f"configured; use {' or '.join(possible)}."
        )


def check_unseen(dataset, histories: Histories, targets: Targets, trained_with: SplitRule) -> None:
    """Raises UserError if a target lies in what the protocol of training let the model see."""
    trained_end = trained_with.train_ends(dataset.lengths)[histories.users]
    leaked = int((targets.position < trained_end[targets.user]).sum())
    if leaked:
        raise UserError(
            f"{leaked} targets were training events under config.data.protocol={trained_with.name}; "
            "evaluate with that protocol, or train with this one."
        )


def row_memories(
    method, params, histories: Histories, rows: Rows, memory: str, batch_size: int, stored="float32"
) -> State:
    """States [R, ...] of all rows, iterated or one-time; stored: see `codec`."""
    fold = one_time_memories if memory == "one_time" else iterated_memories
    return fold(method, params, histories, rows, batch_size=batch_size, stored=stored)


def evaluate(
    method,
    params,
    dataset,
    *,
    split: str,
    memory: str = "",
    protocol: str = "",
    batch_size: int = 128,
    max_users: int = 0,
    max_segments: int = 0,
    swap: bool = True,
    seed: int = 0,
    corrupt: Callable[[Histories, Targets], Histories] | None = None,
    stored: str = "float32",
) -> Evaluation:
    """Predicts every target of `split` from its whole own prefix and ranks the full catalogue.

    Args:
      method: see `methods.base.Method`; `compress` too for memory="one_time".
      params: its parameters.
      dataset: see `data.dataset`.
      split: validation | test.
      memory: overwrite | append | one_time | none; empty for the method's own.
      protocol: split rule; empty for `config.data.protocol`.
      batch_size: most users per compiled call; results do not depend on it.
      max_users: 0, or the size of a pseudo-random subset of users fixed by `seed`.
      max_segments: 0, or the newest archived segments that memory may fold.
      swap: also rank every target with another user's memory.
      corrupt: changes what is read, never the targets; see `denoise.Noise`.
      stored: the format a memory is kept in between updates: float32 | bfloat16 | int8, see `codec`.

    Raises:
      UserError: `memory` does not fit the method, `stored` is unknown, nobody has targets under the
        protocol, targets were training events under the protocol of `config.data`, or scores are not
        finite.
    """
    began = time.perf_counter()
    config = method.config
    memory = memory or own_memory(config)
    protocol = protocol or config.data.protocol
    check_memory(method, memory)
    check_format(stored)

    rule = bound_rule(config.data, dataset, protocol)
    users, skipped = select_users(dataset.lengths, rule, split, max_users, seed)
    histories = load_histories(dataset, users)
    targets = make_targets(histories, rule, split)
    check_unseen(dataset, histories, targets, bound_rule(config.data, dataset))
    if corrupt is not None:
        histories = corrupt(histories, targets)
    rows = plan_rows(targets, method, max_segments)
    states = row_memories(method, params, histories, rows, memory, batch_size, stored)

    def ranks_with(states: State) -> np.ndarray:
        vectors = read_targets(method, params, histories, rows, states, batch_size=batch_size)
        return rank_targets(method, params, histories, targets, vectors, mask_seen=rule.mask_seen)

    ranks = ranks_with(states)
    donors = swap_donors(rows) if swap else None
    swapped = None if donors is None else ranks_with(take(states, donors))
    return Evaluation(
        method=config.method.name,
        memory=memory,
        backbone=config.model.backbone,
        dataset=dataset_name(dataset.info),
        data_hash=dataset.content_hash,
        split=split,
        protocol=protocol,
        user=users[targets.user],
        position=targets.position,
        rank=ranks,
        swapped_rank=swapped,
        metrics=summarize(ranks, targets.user),
        skipped_users=skipped,
        wall_s=time.perf_counter() - began,
        **_state_figures(method, rows, states, stored),
    )


def final_rows(rows: Rows) -> np.ndarray:
    """Index of the last row of each user that has memory: int64 [users with memory]."""
    order = np.lexsort((rows.end, rows.user))
    last = order[np.append(np.diff(rows.user[order]) > 0, True)]
    return last[rows.updates[last] > 0]


def _state_figures(method, rows: Rows, states: State, stored: str) -> dict:
    """Bytes per user and the variance between users of the final memories."""
    _, slots, dim = states.memory.shape
    capacity = states.memory[0].nbytes
    if stored != "float32":
        capacity = slots * slot_bytes(stored, dim)
    bookkeeping = sum(leaf[0].nbytes for leaf in (states.groups, states.segments))
    final = final_rows(rows)
    figures = {
        "state_bytes_per_user": capacity,
        "state_bookkeeping_bytes": bookkeeping,
        "state_used_bytes": None,
        "memory_variance": None,
    }
    if capacity and len(final):
        memories = states.memory[final].astype(np.float64)
        figures["memory_variance"] = float(memories.var(axis=0).mean())
        if method.config.method.memory == "append":
            groups = states.memory.shape[1] // method.config.method.slots
            figures["state_used_bytes"] = float(states.groups[final].mean() * capacity / groups)
    return figures
