"""Diagnose a memory: is it used, does it differ between users, does it survive many updates?

A memory can satisfy the consistency loss by being constant or by being copied, and it can differ
between users while the reader ignores it. So every figure here has one to compare it with: the
user's memory against swapped, zero and mean memory; persistence and drift against the variance
between users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.catalogue import Reader, catalogue_of
from rec2pm_jax.evaluation.histories import EvaluationData
from rec2pm_jax.evaluation.memory_drift import measure_drift, newest_group
from rec2pm_jax.evaluation.memory_kinds import resolve_memory
from rec2pm_jax.evaluation.memory_states import choose_swap_donors, take_states
from rec2pm_jax.evaluation.memory_statistics import (
    archived_frequencies,
    effective_rank,
    linear_probe,
    slot_cosine,
)
from rec2pm_jax.evaluation.metrics import ndcg
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import Rows, final_rows, memory_rows, plan_rows, select_targets
from rec2pm_jax.methods.method import Method
from rec2pm_jax.typing import Params, State

_BINS = 4


def memory_diagnostics(
    method: Method, params: Params, dataset: EvaluationData, spec: EvalSpec
) -> dict[str, Any]:
    """Compute the diagnostics of a trained memory.

    Args:
      method: the method to diagnose.
      params: its parameters, as for `evaluator.evaluate`.
      dataset: a prepared dataset.
      spec: split, memory and users; `swap`, `corrupt` and `memory_format` are ignored.

    Returns:
      A dict that is ready for JSON. NDCG is the mean over targets of rows that have memory.

      - "ndcg@10": {targets, own, swapped, zero, mean}, the same reads with four memories: the
        user's own, another user's, zeros, and the mean of all users' final memories.
      - "by_raw_events": the same by number of raw events read before the target, in quarters.
      - "memory": figures of the newest group of memory [C, D] of each user, per element:
        `between_user_variance`; `persistence`, the mean of (m_h - m_{h-1})^2 over the last update;
        `effective_rank`, `slot_cosine` and `linear_probe`, see `memory_statistics`.
      - "drift": see `memory_drift.measure_drift`.

    Raises:
      UserError: the method has no memory, or fewer than two users have a segment to memorise.
    """
    memory = resolve_memory(method, spec.memory)
    if not method.memory.capacity:  # an exact memory alone has nothing to diagnose here
        raise UserError(
            f"Method {method.config.method.name} has no memory to diagnose; leave out diagnostics."
        )
    types = spec.target_types or method.config.loss.target_types
    rule = bound_rule(method.config.data, dataset, spec.protocol or "", types)
    _, _, histories, targets = select_targets(dataset, rule, spec.split, spec.max_users, spec.seed)
    rows = plan_rows(targets, method, spec.max_segments)
    donors = choose_swap_donors(rows)
    if donors is None:
        raise UserError(
            "Fewer than two users have a segment to memorise; use longer histories or a smaller "
            "config.data.segment."
        )

    catalogue = catalogue_of(method, params)
    reader = catalogue.reader(histories)
    states = reader.compute_memories(rows, memory, spec.batch_size)
    gains = {}
    for kind, replaced in _replace_memories(states, final_rows(rows), donors).items():
        readout = reader.read(
            rows,
            replaced,
            batch_size=spec.batch_size,
            request_time=rule.request_time(spec.split),
        )
        ranks = catalogue.rank(histories, targets, readout, rule.mask_seen)
        gains[kind] = ndcg(ranks, 10)

    has_memory = rows.updates[rows.target_row] > 0
    raw_events = rows.target_column + 1
    edges = np.linspace(0, method.read_length, _BINS + 1).astype(int)
    by_raw_events = [
        {"from": int(low) + 1, "to": int(high)}
        | _mean_gains(gains, has_memory & (raw_events > low) & (raw_events <= high))
        for low, high in zip(edges[:-1], edges[1:], strict=True)
        if high > low
    ]
    earlier = _states_before(reader, rows, memory, spec.batch_size)
    return {
        "ndcg@10": _mean_gains(gains, has_memory),
        "by_raw_events": by_raw_events,
        "memory": _describe_memories(reader, rows, states, earlier),
        "drift": measure_drift(
            reader.method, reader.params, reader.histories, batch_size=spec.batch_size
        ),
    }


def _replace_memories(states: State, final: np.ndarray, donors: np.ndarray) -> dict[str, State]:
    """Return the states of all rows with four memories: own, another user's, zeros and the mean."""
    memory = np.asarray(states.memory)
    average = np.broadcast_to(memory[final].mean(axis=0), memory.shape)
    return {
        "own": states,
        "swapped": take_states(states, donors),
        "zero": _with_memory(states, np.zeros_like(memory)),
        "mean": _with_memory(states, np.ascontiguousarray(average)),
    }


def _with_memory(states: State, memory: Any) -> State:
    return states._replace(memory=memory)


def _mean_gains(gains: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict[str, Any]:
    """Return the number of chosen targets and their mean gain with each memory."""
    count = int(chosen.sum())
    means = {kind: float(g[chosen].mean()) if count else None for kind, g in gains.items()}
    return {"targets": count, **means}


def _states_before(reader: Reader, rows: Rows, memory: str, batch_size: int) -> State:
    """Return the states one update before the final one of each user with memory."""
    final = final_rows(rows)
    before = memory_rows(
        rows.user[final],
        rows.first_segment[final],
        rows.updates[final] - 1,
        reader.method.config.data.segment,
    )
    return reader.compute_memories(before, memory, batch_size)


def _describe_memories(reader: Reader, rows: Rows, states: State, earlier: State) -> dict[str, Any]:
    """Return the figures of the final memories; `earlier` holds them one update before."""
    method, histories = reader.method, reader.histories
    final = final_rows(rows)
    newest = newest_group(method, states)[final]
    changed = rows.updates[final] > 1  # a first memory has no predecessor
    step = np.square(newest - newest_group(method, earlier))[changed]
    archive = archived_frequencies(histories, rows, method.num_items, method.config.data.segment)
    return {
        "between_user_variance": float(newest.var(axis=0).mean()),
        "persistence": float(step.mean()) if changed.any() else None,
        "effective_rank": effective_rank(newest.reshape(len(newest), -1)),
        "slot_cosine": slot_cosine(newest),
        "linear_probe": linear_probe(newest.reshape(len(newest), -1), archive[final]),
    }
