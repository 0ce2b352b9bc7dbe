"""Losses over the catalogue. The output embeddings are the item table of the input (tied)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.config import ComputeConfig, LossConfig
from rec2pm_jax.nn.catalogue.chunked_sums import log_partition_sum, weighted_sum
from rec2pm_jax.nn.catalogue.own_items import (
    add_own,
    addend_of,
    are_own,
    flatten_own,
    repeat_users,
)
from rec2pm_jax.nn.dropout import per_row
from rec2pm_jax.nn.platform import platform_of
from rec2pm_jax.typing import PADDING_ID, Array, OwnItems, PRNGKey, Readout

MIN_CHUNK = 64  # positions; fewer would leave matrix products inefficient
CPU_CHUNK_BYTES, DEVICE_CHUNK_BYTES = 1 << 21, 1 << 28
MANY_ITEMS = 1 << 15  # logits of a chunk over more items leave the cache: split the catalogue too


class Positions(NamedTuple):
    """Positions whose next item is predicted.

    Attributes:
      vectors: float [T, D], outputs of the model.
      targets: int32 [T], ids of the next items.
      weights: float32 [T]. A position with weight 0 does not count, and is not computed.
      numbers: int32 [T], unique within the step: they select the negatives, see `per_row`.
      own: addends float32 [T, J] of the user's own items; None for a model without. The full softmax
        takes ids [T, J]. Sampled negatives take ids [B, J] without duplicates, see `combine_own`: each
        user's are those of T / B consecutive positions, and an addend of -inf leaves an item out.
    """

    vectors: Array  # T D
    targets: Array  # T
    weights: Array  # T
    numbers: Array  # T
    own: OwnItems | None = None  # ids T J or B J, addends T J


def to_queries(config: LossConfig, vectors: Array) -> Array:
    """Return model outputs as queries: their dot products with `to_item_vectors` are logits.

    A logit is the cosine of an output and an item vector, divided by the temperature. Both functions
    together are its one definition, for training and for ranking.

    Args:
      config: its temperature divides the cosines.
      vectors: float [..., D], outputs of the model.

    Returns:
      float32 [..., D].

    >>> to_queries(LossConfig(temperature=0.5), jnp.array([3.0, 4.0])).round(3)
    Array([1.2, 1.6], dtype=float32)
    """
    return _normalize(vectors.astype(jnp.float32)) / config.temperature


def to_item_vectors(table: Array) -> Array:
    """Return rows of the item table, float [..., D], as float32 vectors for `to_queries`."""
    return _normalize(table.astype(jnp.float32))


def _normalize(x: Array) -> Array:
    """Return x / sqrt(||x||^2 + 1e-12) over the last axis: smooth at 0, unlike a clipped norm."""
    norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
    return x / norm


def catalogue_logits(config: LossConfig, readout: Readout, catalogue: Array) -> Array:
    """Return the logits of all items, with -inf in the padding column.

    Args:
      config: of the loss.
      readout: outputs of the model, vectors [..., D].
      catalogue: float32 [V, D], what `to_item_vectors` returned for the item table.

    Returns:
      float32 [..., V].
    """
    logits = to_queries(config, readout.vectors) @ catalogue.T
    if readout.own is not None:
        shape = logits.shape
        logits = add_own(logits.reshape(-1, shape[-1]), flatten_own(readout.own)).reshape(shape)
    return jnp.where(jnp.arange(catalogue.shape[0]) == 0, -jnp.inf, logits)


def loss_chunk_bytes(config: ComputeConfig) -> int:
    """Return the bytes of a chunk of logits: it fits a CPU core's cache, or keeps a device busy."""
    return CPU_CHUNK_BYTES if platform_of(config.platform) == "cpu" else DEVICE_CHUNK_BYTES


def next_item_loss(
    config: LossConfig,
    table: Array,
    positions: Positions,
    rng: PRNGKey,
    chunk_bytes: int,
    negatives: Array | None = None,
) -> tuple[Array, Array]:
    """Return the cross-entropy of the next items.

    Args:
      config: how many negatives, or none for the full softmax.
      table: float [V, D] item embeddings; row 0 is padding.
      positions: what is predicted.
      rng: key of the sampled negatives.
      chunk_bytes: size of the logits (or gathered negatives) of a chunk of positions, in bytes.
      negatives: int32 [R], shared negatives that the caller drew uniformly from a catalogue of which
        `table` is a part. None: they are drawn from all of `table`.

    Returns:
      (weighted sum, sum of weights), float32 scalars.

    >>> positions = Positions(jnp.zeros((1, 4)), jnp.array([3]), jnp.ones(1), jnp.array([0]))
    >>> total, weight = next_item_loss(
    ...     LossConfig(), jnp.ones((9, 4)), positions, jax.random.key(0), chunk_bytes=1 << 20)
    >>> bool(jnp.isclose(total, jnp.log(8.0))), float(weight)
    (True, 1.0)
    """
    positions = positions._replace(weights=jax.lax.stop_gradient(positions.weights))
    if config.negatives is None:
        total = _sum_full_softmax(config, table, positions, chunk_bytes)
    else:
        if negatives is None:
            negatives = sample_negatives(config, table.shape[0] - 1, rng, positions.numbers)
        total = _sum_sampled_softmax(config, table, positions, negatives, chunk_bytes)
    return total, jnp.sum(positions.weights)


def sample_negatives(config: LossConfig, num_items: int, rng: PRNGKey, numbers: Array) -> Array:
    """Draw negative ids, uniform over the catalogue, with replacement.

    Args:
      config: how many, and whether positions share them.
      num_items: items of the catalogue, without padding.
      rng: random key.
      numbers: int32 [T], of `Positions`.

    Returns:
      int32 [R] if positions share them, else [T, R].
    """

    count = config.negatives or 0

    def draw(key: PRNGKey) -> Array:
        return jax.random.randint(key, (count,), 1, num_items + 1)

    return per_row(draw, rng, numbers) if config.sharing == "per_position" else draw(rng)


def _sum_full_softmax(
    config: LossConfig, table: Array, positions: Positions, chunk_bytes: int
) -> Array:
    vectors, targets, weights, _, own = positions
    queries, table = to_queries(config, vectors), to_item_vectors(table)
    positives, items = table[targets], table[1:]  # without the padding column
    addends, ids = (None, None) if own is None else (own.addends, own.ids)
    if items.shape[0] > MANY_ITEMS:
        # A gradient of the whole table for every chunk of positions would cost more.
        total = log_partition_sum(queries, items, weights, chunk_bytes, own)
        positive = jnp.sum(queries * positives, axis=1) + addend_of(own, targets)
        return total - jnp.sum(positive * weights)
    chunk = _chunk_positions(chunk_bytes, items.shape[0])
    rows, context = (queries, positives, addends), (ids, targets)
    return weighted_sum(_full_softmax, items, rows, (), context, weights, chunk)


def _sum_sampled_softmax(
    config: LossConfig, table: Array, positions: Positions, ids: Array, chunk_bytes: int
) -> Array:
    """Return the weighted sum; ids are those of `sample_negatives`.

    A user's own items are candidates beside the negatives, as their addends would get no gradient
    otherwise. A negative that is an own item does not count twice.
    """
    vectors, targets, weights, _, own = positions
    queries, count = to_queries(config, vectors), ids.shape[-1]
    excluded = ids == targets[:, None]
    own_logits = is_target = None
    if own is not None:
        own_logits = _score_own(queries, table, own)
        seen = own_logits > -jnp.inf
        is_target = seen & (repeat_users(own.ids, targets) == targets[:, None])
        excluded |= are_own(ids, own.ids, seen)
    context = is_target, excluded
    if config.sharing == "shared":
        # Gather first, then normalise: the cost does not grow with the catalogue.
        negatives, positives = to_item_vectors(table[ids]), to_item_vectors(table[targets])
        rows, chunk = (queries, positives, own_logits), _chunk_positions(chunk_bytes, count)
        return weighted_sum(_shared_negatives, negatives, rows, (), context, weights, chunk)
    items = to_item_vectors(table)
    chunk_bytes = max(chunk_bytes, items.size)  # each chunk adds to a gradient of all items
    rows = queries, items[targets], own_logits
    chunk = _chunk_positions(chunk_bytes, count * table.shape[1])
    return weighted_sum(_own_negatives, items, rows, (), (ids, *context), weights, chunk)


def _score_own(queries: Array, table: Array, own: OwnItems) -> Array:
    """Return the logits of own items [T, J], -inf for none. Positions of a user share their vectors."""
    users, items = own.ids.shape
    vectors = to_item_vectors(table[own.ids])
    queries = queries.reshape(users, -1, queries.shape[-1])
    logits = jnp.einsum("bnd,bjd->bnj", queries, vectors).reshape(-1, items)
    seen = repeat_users(own.ids != PADDING_ID, logits) & (own.addends > -jnp.inf)
    return jnp.where(seen, logits + jnp.where(seen, own.addends, 0), -jnp.inf)


def _chunk_positions(chunk_bytes: int, numbers: int) -> int:
    """Return the positions of a chunk, for float32 `numbers` per position."""
    return max(MIN_CHUNK, chunk_bytes // (4 * numbers))


# Each of these is a `chunked_sums.RowLoss`: float32 [chunk] of (shared, rows, context, row_context).
# Positives are looked up outside, so that their gradient is one scatter and not one for every chunk.

# Queries and positives float32 [chunk, D], and a number for each own item [chunk, J] or None.
ScoredRows = tuple[Array, Array, Array | None]


def _full_softmax(
    items: Array, rows: ScoredRows, _: tuple, row_context: tuple[Array | None, Array]
) -> Array:
    (queries, positives, addends), (ids, targets) = rows, row_context
    own = None if addends is None or ids is None else OwnItems(ids, addends)
    positive = jnp.sum(queries * positives, axis=-1) + addend_of(own, targets)
    return _logsumexp(add_own(queries @ items.T, own, first=1)) - positive


def _shared_negatives(
    negatives: Array, rows: ScoredRows, _: tuple, row_context: tuple[Array | None, Array]
) -> Array:
    return _sampled_softmax(rows[0] @ negatives.T, rows, *row_context)


def _own_negatives(
    items: Array, rows: ScoredRows, _: tuple, row_context: tuple[Array, Array | None, Array]
) -> Array:
    ids, is_target, excluded = row_context
    logits = jnp.einsum("td,trd->tr", rows[0], items[ids])
    return _sampled_softmax(logits, rows, is_target, excluded)


def _sampled_softmax(
    logits: Array, rows: ScoredRows, is_target: Array | None, excluded: Array
) -> Array:
    """Return the loss of each position.

    Args:
      logits: [chunk, R], of the negatives.
      rows: queries and positives of the positions, and the logits of own items, -inf for none.
      is_target: bool [chunk, J], which own item is the target; None without own items.
      excluded: bool [chunk, R], negatives that do not count.
    """
    queries, positives, own_logits = rows
    positive = jnp.sum(queries * positives, axis=-1)
    logits = jnp.where(excluded, -jnp.inf, logits)
    if own_logits is not None and is_target is not None:
        # The positive is an own item as well: its logit is complete there.
        own_positive = jnp.sum(jnp.where(is_target, own_logits, 0), axis=-1)
        positive = jnp.where(jnp.any(is_target, axis=-1), own_positive, positive)
        own_logits = jnp.where(is_target, -jnp.inf, own_logits)
        logits = jnp.concatenate([logits, own_logits], axis=-1)
    # Not one array with the positive: what is large is written once and read as rarely as possible.
    top = jax.lax.stop_gradient(jnp.maximum(positive, jnp.max(logits, axis=-1)))
    total = jnp.exp(positive - top) + jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)
    return jnp.log(total) + top - positive


def _logsumexp(logits: Array) -> Array:
    """Reduce the last axis of finite logits, with fewer passes over a big array than jax.nn's."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[:, 0]
