"""Examine a preference memory: what its slots hold, and which tokens attend to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.memory_states import compute_memories
from rec2pm_jax.evaluation.targets import Rows, final_rows, memory_rows
from rec2pm_jax.methods.memory import PassInputs
from rec2pm_jax.methods.rec2pm import reference_inputs
from rec2pm_jax.methods.token_memory import TokenMemory
from rec2pm_jax.methods.windows import Window
from rec2pm_jax.typing import Params, State

NEIGHBOURS = 10


def attention_shares(
    method: Any,
    params: Params,
    histories: Histories,
    rows: Rows,
    *,
    users: int = 64,
    batch_size: int = 128,
) -> dict[str, Any]:
    """Measure where the queries and the reader attend, averaged over heads and users.

    Args:
      method: a method whose memory consists of tokens.
      params: its parameters.
      histories: the events of the users.
      rows: rows of all users; the last row of each user is examined.
      users: largest number of users to average over.
      batch_size: largest number of users per compiled call.

    Returns:
      Shares of attention, as nested lists:

      - "update": [layers][C][3], share of each query of the last update on the memory, on the
        segment, and on the queries themselves.
      - "read": [layers][2], share of the last raw event's row on the memory and on the raw events.
      - "one_pass": [layers][C][K], share of each query of the one-time pass over the newest K
        segments on each of them, newest first, without the queries; None for methods without a
        one-time memory.

      Softmax rows add up to one. HSTU's pointwise weights are divided by their sum of magnitudes.

    Raises:
      UserError: the memory is not made of tokens, or no user has K archived segments.
    """
    if not isinstance(method.memory, TokenMemory):
        raise UserError(f"Method {method.config.method.name} keeps no memory tokens to look at.")
    segments = method.config.data.segments
    final = final_rows(rows)
    chosen = final[rows.updates[final] >= segments][:users]
    if not len(chosen):
        raise UserError(f"No user has {segments} archived segments; lower data.segments.")
    examined = _Examined(method, params, histories, rows, chosen, batch_size)
    return {
        "update": _sums(examined.update_weights()),
        "read": _sums(examined.read_weights()),
        "one_pass": examined.one_pass_shares(),
    }


class _Examined:
    """The last rows of some users, and the attention weights of passes over them."""

    def __init__(
        self,
        method: Any,
        params: Params,
        histories: Histories,
        rows: Rows,
        chosen: np.ndarray,
        batch_size: int,
    ) -> None:
        self.method, self.params, self.histories = method, params, histories
        self.rows, self.chosen, self.batch_size = rows, chosen, batch_size
        self.user, self.start = rows.user[chosen], rows.start[chosen]
        self.segment = method.config.data.segment

    def update_weights(self) -> list[np.ndarray]:
        """Return the weights of the last update's queries on memory, segment and queries."""
        before = self._memories(self.rows.updates[self.chosen] - 1)
        memory = before.memory.shape[1]
        length = np.full(len(self.chosen), self.segment)
        window = self._window(self.start - self.segment, length, self.segment)
        inputs = self.method.memory.update_inputs(self.params, before, window, with_queries=True)
        blocks, count = self._mean_weights(inputs)
        weights = _join_blocks(blocks)
        queries = weights[:, memory:count]
        return [queries[..., :memory], queries[..., count:], queries[..., memory:count]]

    def read_weights(self) -> list[np.ndarray]:
        """Return the weights of each read's last row on the memory and on the raw events."""
        states = self._memories(self.rows.updates[self.chosen])
        memory, width = states.memory.shape[1], self.method.read_length
        raw = np.minimum(self.rows.end - self.rows.start, width)[self.chosen]
        window = self._window(self.start, raw, width)
        inputs = self.method.memory.update_inputs(self.params, states, window, with_queries=False)
        weights = np.abs(_join_blocks(self._weights(inputs)).astype(np.float64))
        weights = weights.mean(axis=2)  # layers, users, rows, keys
        last = weights[:, np.arange(len(self.chosen)), memory + np.asarray(window.lengths) - 1]
        last = _normalise(last).mean(axis=1)
        return [last[:, :memory], last[:, memory:]]

    def one_pass_shares(self) -> list | None:
        """Return the shares of the one-time pass's queries on each segment, newest first."""
        if not self.method.can_compress:
            return None
        slots, segments = self.method.config.method.slots, self.method.config.data.segments
        width = segments * self.segment
        length = np.full(len(self.chosen), width)
        history = self._window(self.start - width, length, width)
        ends = history.lengths[:, None]
        inputs = reference_inputs(self.method.memory, self.params, history, ends)
        (weights, *_), count = self._mean_weights(inputs)
        by_segment = weights[:, :slots, count:].reshape(len(weights), slots, segments, -1)
        return by_segment.sum(axis=-1)[..., ::-1].tolist()

    def _memories(self, updates: np.ndarray) -> State:
        """Return the states of the users after so many updates."""
        first = self.rows.first_segment[self.chosen]
        wanted = memory_rows(self.user, first, updates, self.segment)
        kind = self.method.memory_kind
        return compute_memories(
            self.method, self.params, self.histories, wanted, kind, self.batch_size
        )

    def _window(self, start: np.ndarray, length: np.ndarray, width: int) -> Window:
        """Return a window of each user; rows ask at the times of their events."""
        events, valid = self.histories.window(self.user, start, length, width)
        return Window(events, jnp.asarray(valid.sum(axis=1, dtype=np.int32)), events.times)

    def _weights(self, inputs: PassInputs) -> list[np.ndarray]:
        """Return the attention weights of each block: [layers, users, heads, rows, keys]."""
        run = self.method.network.attention_weights
        return jax.device_get(jax.jit(lambda p: run(p, inputs.x, inputs.layout))(self.params))

    def _mean_weights(self, inputs: PassInputs) -> tuple[list[np.ndarray], int]:
        """Return normalised weights per block, means over heads and users, and the slot count.

        Each block is [layers, rows, keys].
        """
        found = [np.abs(np.asarray(weights, np.float64)) for weights in self._weights(inputs)]
        return [_normalise(w).mean(axis=(1, 2)) for w in found], inputs.layout.num_slots


def _normalise(weights: np.ndarray) -> np.ndarray:
    """Divide weights [.., keys] by their sum."""
    return weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


def _sums(parts: Sequence[np.ndarray]) -> list:
    """Sum each part over its keys and stack the sums on a last axis."""
    return np.stack([part.sum(axis=-1) for part in parts], axis=-1).tolist()


def _join_blocks(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Join blocks of weights [.., rows, keys], whose keys start with the first token, into one."""
    keys = max(block.shape[-1] for block in blocks)
    whole = [np.pad(b, [(0, 0)] * (b.ndim - 1) + [(0, keys - b.shape[-1])]) for b in blocks]
    return np.concatenate(whole, axis=-2)


def nearest_items(memories: np.ndarray, table: np.ndarray, top: int = 5) -> np.ndarray:
    """Find the items whose embeddings are nearest to what sets each slot of each user apart.

    Memories start as sums of item embeddings (the identity initialisation). So cosines with the
    table tell which items weigh in them. The mean over users is removed first: it holds what all
    users have in common.

    Args:
      memories: float [U, C, D], U >= 2.
      table: float [V, D], row 0 is padding.
      top: number of items per slot.

    Returns:
      int64 [U, C, top], item ids, nearest first.
    """
    apart = memories - memories.mean(axis=0)
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    scores = np.einsum("ucd,vd->ucv", apart, unit)
    scores[..., 0] = -np.inf
    return np.argsort(-scores, axis=-1, kind="stable")[..., :top]


def dominant_groups(
    groups: np.ndarray, histories: Histories, users: np.ndarray, ends: np.ndarray, count: int
) -> np.ndarray:
    """Return the group of items that each user takes most above the average of all users.

    Args:
      groups: int64 [V], the group of each item; `count` or more for items to ignore.
      histories: the events of the users.
      users: int64 [U], indices into `histories`.
      ends: int64 [U]; events before these positions count.
      count: number of groups.

    Returns:
      int64 [U], below `count`.
    """
    shares = np.zeros((len(users), count))
    for row, (user, end) in enumerate(zip(users, ends, strict=True)):
        first = histories.offsets[user]
        found = groups[histories.ids[first : first + end]]
        shares[row] = np.bincount(found[found < count], minlength=count) / max(1, end)
    return np.argmax(shares / np.maximum(shares.mean(axis=0), 1e-12), axis=1)


def neighbour_agreement(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure whether users with the same label have similar memories.

    Args:
      vectors: float [U, N], U > NEIGHBOURS.
      labels: int [U].

    Returns:
      {"same": share of the NEIGHBOURS nearest users (by cosine, the mean removed) that have the
      user's label, "chance": the same for random users}.
    """
    unit = vectors - vectors.mean(axis=0)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argpartition(-cosines, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    counts = np.bincount(labels)
    chance = (counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1))
    return {"same": float((labels[nearest] == labels[:, None]).mean()), "chance": float(chance)}
