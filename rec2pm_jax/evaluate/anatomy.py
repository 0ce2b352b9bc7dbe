"""What the slots of a preference memory hold, and who looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluate.evaluator import final_rows, own_memory, row_memories
from rec2pm_jax.evaluate.targets import Histories, Rows, memory_rows
from rec2pm_jax.methods.recurrent import TokenMemory
from rec2pm_jax.typing import Events, State

NEIGHBOURS = 10


def _all_rows(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Weights of blocks whose keys start with the first token, [.., rows, keys], as one block."""
    keys = max(block.shape[-1] for block in blocks)
    whole = [np.pad(b, [(0, 0)] * (b.ndim - 1) + [(0, keys - b.shape[-1])]) for b in blocks]
    return np.concatenate(whole, axis=-2)


def attention(
    method, params, histories: Histories, rows: Rows, *, users: int = 64, batch_size: int = 128
) -> dict[str, Any]:
    """Where the queries and the reader look, averaged over heads and over up to `users` users.

    Args:
      rows: of all users; their last ones are looked at.

    Returns:
      update: [layers][C][3], mass of each query in the last update on the memory, on the
        segment, and on the queries themselves.
      read: [layers][2], mass of the last raw event's row on the memory and on the raw events.
      one_pass: [layers][C][K], mass of each query of the one-time pass over the newest K segments on
        each of them, newest first, the queries left out; None for methods without `compress`.
      Softmax rows add up to one; HSTU's pointwise weights are divided by their sum of magnitudes.

    Raises:
      UserError: the memory is not made of tokens, or nobody has K archived segments.
    """
    if not isinstance(method, TokenMemory):
        raise UserError(f"Method {method.config.method.name} keeps no memory tokens to look at.")
    data, slots = method.config.data, method.config.method.slots
    final = final_rows(rows)
    chosen = final[rows.updates[final] >= data.segments][:users]
    if not len(chosen):
        raise UserError(f"Nobody has {data.segments} archived segments; lower data.segments.")

    def memories(updates) -> State:
        wanted = memory_rows(rows.user[chosen], rows.first_segment[chosen], updates, data.segment)
        return row_memories(
            method, params, histories, wanted, own_memory(method.config), batch_size
        )

    own, before = memories(rows.updates[chosen]), memories(rows.updates[chosen] - 1)
    memory = own.memory.shape[1]

    def watch(tokens) -> tuple[list[np.ndarray], int]:
        """Normalised weights per block, mean over heads and users: [layers, rows, keys]."""
        x, layout = tokens
        found = jax.jit(lambda p: method.network.attention(p, x, layout))(params)
        found = [np.abs(np.asarray(weights, np.float64)) for weights in found]
        found = [w / np.maximum(w.sum(axis=-1, keepdims=True), 1e-30) for w in found]
        return [w.mean(axis=(1, 2)) for w in found], layout.num_slots

    def events(start, length, width) -> tuple[Events, np.ndarray, Any, Any]:
        seen, valid = histories.window(rows.user[chosen], start, length, width)
        return seen, valid.sum(axis=1, dtype=np.int32), seen.times

    segment_start = rows.start[chosen] - data.segment
    seen, lengths, times = events(segment_start, np.full(len(chosen), data.segment), data.segment)
    weights, count = watch(method.update_tokens(params, before, seen, lengths, times, queries=True))
    weights = _all_rows(weights)
    queries = weights[:, memory:count]
    update = [queries[..., :memory], queries[..., count:], queries[..., memory:count]]

    raw = np.minimum(rows.end - rows.start, method.read_length)[chosen]
    seen, lengths, times = events(rows.start[chosen], raw, method.read_length)
    x, layout = method.update_tokens(params, own, seen, lengths, times, queries=False)
    weights = _all_rows(jax.jit(lambda p: method.network.attention(p, x, layout))(params))
    weights = np.abs(weights.astype(np.float64)).mean(axis=2)  # layers, users, rows, keys
    last = weights[:, np.arange(len(chosen)), memory + lengths - 1]
    last = (last / np.maximum(last.sum(axis=-1, keepdims=True), 1e-30)).mean(axis=1)
    read = [last[:, :memory], last[:, memory:]]

    one_pass = None
    if hasattr(method, "reference_tokens"):
        width = data.segments * data.segment
        seen, lengths, times = events(
            rows.start[chosen] - width, np.full(len(chosen), width), width
        )
        (weights, *_), count = watch(
            method.reference_tokens(params, seen, lengths, lengths[:, None], times)
        )
        by_segment = weights[:, :slots, count:].reshape(len(weights), slots, data.segments, -1)
        one_pass = by_segment.sum(axis=-1)[..., ::-1].tolist()
    return {
        "update": np.stack([part.sum(axis=-1) for part in update], axis=-1).tolist(),
        "read": np.stack([part.sum(axis=-1) for part in read], axis=-1).tolist(),
        "one_pass": one_pass,
    }


def nearest_items(memories: np.ndarray, table: np.ndarray, top: int = 5) -> np.ndarray:
    """Items whose embeddings are nearest to what is peculiar to each slot of each user.

    Memories start as sums of item embeddings (the copying start), so cosines with the table say which
    items weigh in them. The mean over users is removed first: it holds what everybody buys.

    Args:
      memories: float [U, C, D], U >= 2.
      table: float [V, P * D], row 0 is padding. Slot p < P, which sums part p of item vectors, is
        compared with that part (`method.sketch`), other slots with the first.

    Returns:
      int64 [U, C, top], ids.
    """
    peculiar = memories - memories.mean(axis=0)
    slots, dim = memories.shape[1:]
    parts = table.reshape(len(table), -1, dim)
    part_of = [slot if slot < parts.shape[1] else 0 for slot in range(slots)]
    unit = parts / np.maximum(np.linalg.norm(parts, axis=2, keepdims=True), 1e-12)
    scores = np.einsum("ucd,vcd->ucv", peculiar, unit[:, part_of])
    scores[..., 0] = -np.inf
    return np.argsort(-scores, axis=-1, kind="stable")[..., :top]


def dominant(
    groups: np.ndarray, histories: Histories, users: np.ndarray, ends: np.ndarray, count: int
) -> np.ndarray:
    """The group of items that each user takes most above average: int64 [U], below `count`.

    Args:
      groups: int64 [V], the group of each item, `count` or more for those that do not matter.
      users: int64 [U], indices into `histories`. ends: int64 [U], events before these count.
    """
    shares = np.zeros((len(users), count))
    for row, (user, end) in enumerate(zip(users, ends, strict=True)):
        first = histories.offsets[user]
        found = groups[histories.ids[first : first + end]]
        shares[row] = np.bincount(found[found < count], minlength=count) / max(1, end)
    return np.argmax(shares / np.maximum(shares.mean(axis=0), 1e-12), axis=1)


def neighbour_agreement(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Do users with the same label have similar memories?

    Args:
      vectors: float [U, N], U > NEIGHBOURS. labels: int [U].

    Returns:
      {"same": share of the NEIGHBOURS nearest users by cosine (the mean removed) with one's own label,
       "chance": the same for random users}.
    """
    unit = vectors - vectors.mean(axis=0)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argpartition(-cosines, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    counts = np.bincount(labels)
    chance = (counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1))
    return {"same": float((labels[nearest] == labels[:, None]).mean()), "chance": float(chance)}
