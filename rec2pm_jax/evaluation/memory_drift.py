"""Measure how far two memories of the same events lie apart, by number of updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.memory_states import compute_memories
from rec2pm_jax.evaluation.targets import memory_rows
from rec2pm_jax.methods.method import Method
from rec2pm_jax.typing import Params, State

DRIFT_UPDATES = (1, 5, 20)


class _Computation(NamedTuple):
    """How a memory is computed: its kind, and the format it is kept in between updates."""

    memory: str
    memory_format: str = "float32"


def measure_drift(
    method: Method,
    params: Params,
    histories: Histories,
    *,
    updates: Sequence[int] = DRIFT_UPDATES,
    batch_size: int = 128,
) -> list[dict[str, Any]]:
    """Measure how far the folded memory drifts from the one-time memory of the same events.

    Args:
      method: the method to evaluate.
      params: its parameters.
      histories: the events; users with at least `updates` whole segments take part.
      updates: numbers of updates to measure after.
      batch_size: largest number of users per compiled call.

    Returns:
      For each number of updates that some history has: {updates, users, squared_distance (mean per
      element), relative (to the variance between users of the one-time memory)}. Empty for methods
      without one-time memory.
    """
    if not method.can_compress:
        return []
    folded = _Computation(method.memory_kind)
    one_time = _Computation("one_time")
    return _distances(method, params, histories, (folded, one_time), updates, batch_size)


def measure_rounding_drift(
    method: Method,
    params: Params,
    histories: Histories,
    memory_format: str,
    *,
    updates: Sequence[int] = DRIFT_UPDATES,
    batch_size: int = 128,
) -> list[dict[str, Any]]:
    """Measure how far a memory kept in `memory_format` drifts from the same memory in float32.

    Arguments and result as in `measure_drift`.
    """
    memory = method.memory_kind
    pair = _Computation(memory, memory_format), _Computation(memory)
    return _distances(method, params, histories, pair, updates, batch_size)


def newest_group(method: Method, states: State) -> np.ndarray:
    """Return the newest group of memory of each row, float64 [R, C, D]; groups end on the right."""
    return np.asarray(states.memory[:, -method.config.method.slots :], np.float64)


def _distances(
    method: Method,
    params: Params,
    histories: Histories,
    pair: tuple[_Computation, _Computation],
    updates: Sequence[int],
    batch_size: int,
) -> list[dict[str, Any]]:
    """Return squared distances of a pair of memories, relative to the variance of the second."""
    segment = method.config.data.segment
    whole_segments = np.diff(histories.offsets) // segment
    found = []
    for count in updates:
        user = np.flatnonzero(whole_segments >= count)
        if not len(user):
            continue
        rows = memory_rows(user, np.zeros_like(user), np.full_like(user, count), segment)
        memories = (
            compute_memories(method, params, histories, rows, kind, batch_size, memory_format)
            for kind, memory_format in pair
        )
        compared, reference = (newest_group(method, states) for states in memories)
        distance = float(np.square(compared - reference).mean())
        variance = float(reference.var(axis=0).mean())
        found.append(
            {
                "updates": count,
                "users": len(user),
                "squared_distance": distance,
                "relative": distance / variance if variance else None,
            }
        )
    return found
