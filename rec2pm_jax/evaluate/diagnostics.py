"""Is the memory used, does it differ between users, and does it survive many updates?

A memory can satisfy L_con by being constant or by being copied, and can differ between users while
the reader ignores it. So every figure here has one to compare it with: own against swapped, zero
and mean memory; persistence and drift against the variance between users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluate.evaluator import check_memory, final_rows, own_memory, row_memories
from rec2pm_jax.evaluate.memories import swap_donors, take
from rec2pm_jax.evaluate.metrics import ndcg
from rec2pm_jax.evaluate.probe import archived_frequencies, linear_probe
from rec2pm_jax.evaluate.reading import rank_targets, read_targets
from rec2pm_jax.evaluate.targets import (
    Histories,
    Rows,
    load_histories,
    make_targets,
    memory_rows,
    plan_rows,
    select_users,
)
from rec2pm_jax.typing import State

DRIFT_UPDATES = (1, 5, 20)
_BINS = 4


def memory_diagnostics(
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
    seed: int = 0,
) -> dict[str, Any]:
    """Diagnostics of a trained memory (arguments as in `evaluator.evaluate`).

    Returns, JSON-ready; NDCG is over the targets of rows that have memory:
      ndcg@10: {targets, own, swapped, zero, mean}: the same reads with four memories.
      by_raw_events: the same by number of raw events read before the target, in quarters.
      memory: figures of the newest group of memory [C, D] of each user, per element:
        between_user_variance; persistence, mean of (m_h - m_{h-1})^2 over the last update;
        effective_rank of the centred memories (Roy & Vetterli 2007); slot_cosine, mean cosine of
        two slots of a user; linear_probe, see `probe`.
      drift: mean squared distance per element between the memory after h updates and the one-time
        memory of the same events, for h in DRIFT_UPDATES, also relative to the variance between
        users of the one-time memory; empty for methods without `compress`.

    Raises:
      UserError: the method has no memory, or nobody's history is long enough to fill one.
    """
    memory = memory or own_memory(method.config)
    check_memory(method, memory)
    if memory == "none":
        raise UserError(
            f"Method {method.config.method.name} has no memory to diagnose; leave out diagnostics."
        )
    rule = bound_rule(method.config.data, dataset, protocol)
    users, _ = select_users(dataset.lengths, rule, split, max_users, seed)
    histories = load_histories(dataset, users)
    targets = make_targets(histories, rule, split)
    rows = plan_rows(targets, method, max_segments)
    donors = swap_donors(rows)
    if donors is None:
        raise UserError(
            "Fewer than two users have a segment to memorise; use longer histories or a smaller "
            "config.data.segment."
        )

    states = row_memories(method, params, histories, rows, memory, batch_size)
    final = final_rows(rows)
    average = np.broadcast_to(states.memory[final].mean(axis=0), states.memory.shape)
    kinds = {
        "own": states,
        "swapped": take(states, donors),
        "zero": states._replace(memory=np.zeros_like(states.memory)),
        "mean": states._replace(memory=np.ascontiguousarray(average)),
    }
    gains = {}
    for kind, state in kinds.items():
        vectors = read_targets(method, params, histories, rows, state, batch_size=batch_size)
        ranks = rank_targets(method, params, histories, targets, vectors, mask_seen=rule.mask_seen)
        gains[kind] = ndcg(ranks, 10)

    has_memory = rows.updates[rows.target_row] > 0
    raw_events = rows.target_column + 1
    edges = np.linspace(0, method.read_length, _BINS + 1).astype(int)
    by_raw_events = [
        {"from": int(low) + 1, "to": int(high)}
        | _means(gains, has_memory & (raw_events > low) & (raw_events <= high))
        for low, high in zip(edges[:-1], edges[1:], strict=True)
        if high > low
    ]
    return {
        "ndcg@10": _means(gains, has_memory),
        "by_raw_events": by_raw_events,
        "memory": _figures(method, params, histories, rows, states, final, memory, batch_size),
        "drift": drift(method, params, histories, batch_size=batch_size),
    }


def _means(gains: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, Any]:
    count = int(chosen.sum())
    means = {kind: float(g[chosen].mean()) if count else None for kind, g in gains.items()}
    return {"targets": count, **means}


def _newest_group(method, states: State) -> np.ndarray:
    """float64 [R, C, D]: groups are aligned to the right."""
    return states.memory[:, -method.config.method.slots :].astype(np.float64)


def _figures(method, params, histories, rows, states, final, memory, batch_size) -> dict[str, Any]:
    newest = _newest_group(method, states)[final]
    before = memory_rows(
        rows.user[final],
        rows.first_segment[final],
        rows.updates[final] - 1,
        method.config.data.segment,
    )
    earlier = row_memories(method, params, histories, before, memory, batch_size)
    changed = before.updates > 0  # a first memory has no predecessor
    step = np.square(newest - _newest_group(method, earlier))[changed]
    archive = archived_frequencies(histories, rows, method.num_items, method.config.data.segment)
    return {
        "between_user_variance": float(newest.var(axis=0).mean()),
        "persistence": float(step.mean()) if changed.any() else None,
        "effective_rank": effective_rank(newest.reshape(len(newest), -1)),
        "slot_cosine": slot_cosine(newest),
        "linear_probe": linear_probe(newest.reshape(len(newest), -1), archive[final]),
    }


def drift(
    method,
    params,
    histories: Histories,
    *,
    updates: Sequence[int] = DRIFT_UPDATES,
    batch_size: int = 128,
) -> list[dict[str, Any]]:
    """How far iterated memory strays from the one-time memory of the same events.

    Returns:
      Per number of updates that somebody's history has: {updates, users, squared_distance (mean per
      element), relative (to the variance between users of the one-time memory)}; empty for methods
      without `compress`.
    """
    if not hasattr(method, "compress"):
        return []
    own = own_memory(method.config)

    def memories(rows):
        return (
            row_memories(method, params, histories, rows, kind, batch_size)
            for kind in (own, "one_time")
        )

    return _distances(method, histories, updates, memories)


def rounding(
    method,
    params,
    histories: Histories,
    stored: str,
    *,
    updates: Sequence[int] = DRIFT_UPDATES,
    batch_size: int = 128,
) -> list[dict[str, Any]]:
    """How far memory strays that is kept in the format `stored` in between updates: as `drift`, from
    the same memory in float32."""
    own = own_memory(method.config)

    def memories(rows):
        return (
            row_memories(method, params, histories, rows, own, batch_size, kind)
            for kind in (stored, "float32")
        )

    return _distances(method, histories, updates, memories)


def _distances(
    method,
    histories: Histories,
    updates: Sequence[int],
    memories: Callable[[Rows], Iterable[State]],
) -> list[dict[str, Any]]:
    """Squared distances between two memories of the same rows, relative to the second's variance."""
    segment = method.config.data.segment
    whole_segments = np.diff(histories.offsets) // segment
    found = []
    for count in updates:
        user = np.flatnonzero(whole_segments >= count)
        if not len(user):
            continue
        rows = memory_rows(user, np.zeros_like(user), np.full_like(user, count), segment)
        ours, reference = (_newest_group(method, states) for states in memories(rows))
        distance = float(np.square(ours - reference).mean())
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


def effective_rank(vectors: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007).

    Args:
      vectors: float [U, N]; their mean is removed first. Identical vectors have rank 0.
    """
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    if values.sum() <= 1e-12 * max(1.0, np.abs(vectors).max()):
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def slot_cosine(memories: np.ndarray) -> float | None:
    """Mean cosine between two different slots of a user; None with a single slot.

    Args:
      memories: float [U, C, D].
    """
    slots = memories.shape[1]
    if slots < 2:
        return None
    norms = np.linalg.norm(memories, axis=2, keepdims=True)
    unit = memories / np.maximum(norms, 1e-12)
    cosines = np.einsum("ucd,ued->uce", unit, unit)
    return float(cosines[:, ~np.eye(slots, dtype=bool)].mean())
