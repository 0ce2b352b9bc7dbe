"""Losses over the catalogue. The output embeddings are the item table of the input (tied)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.config import ComputeConfig, LossConfig
from rec2pm_jax.nn.catalogue.chunked_sums import log_partition_sum, weighted_sum
from rec2pm_jax.nn.dropout import per_row
from rec2pm_jax.nn.platform import platform_of
from rec2pm_jax.typing import Array, PRNGKey

MIN_CHUNK = 64  # positions; fewer would leave matrix products inefficient
CPU_CHUNK_BYTES, DEVICE_CHUNK_BYTES = 1 << 21, 1 << 28
MANY_ITEMS = 1 << 15  # logits of a chunk over more items leave the cache: split the catalogue too

QueriesAndPositives = tuple[Array, Array]  # float32 [chunk, W] each
IdsAndLogQ = tuple[Array, Array | None]  # int32 and float32 of the same shape


class Positions(NamedTuple):
    """Positions whose next item is predicted.

    Attributes:
      vectors: float [T, W], outputs of the model.
      targets: int32 [T], ids of the next items.
      weights: float32 [T]. A position with weight 0 does not count, and is not computed.
      numbers: int32 [T], unique within the step: they select the negatives, see `per_row`.
    """

    vectors: Array  # T W
    targets: Array  # T
    weights: Array  # T
    numbers: Array  # T


def to_queries(config: LossConfig, vectors: Array) -> Array:
    """Return model outputs as queries: their dot products with `to_item_vectors` are logits.

    Both functions together are the one definition of a logit, for training and for ranking.

    Args:
      config: with `normalize`, logits are cosines divided by the temperature.
      vectors: float [..., W], outputs of the model.

    Returns:
      float32 [..., W].

    >>> to_queries(LossConfig(normalize=True, temperature=0.5), jnp.array([3.0, 4.0])).round(3)
    Array([1.2, 1.6], dtype=float32)
    """
    vectors = vectors.astype(jnp.float32)
    return (_normalize(vectors) if config.normalize else vectors) / config.temperature


def to_item_vectors(config: LossConfig, table: Array) -> Array:
    """Return rows of the item table, float [..., W], as float32 vectors for `to_queries`."""
    table = table.astype(jnp.float32)
    return _normalize(table) if config.normalize else table


def _normalize(x: Array) -> Array:
    """Return x / sqrt(||x||^2 + 1e-12) over the last axis: smooth at 0, unlike a clipped norm."""
    norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
    return x / norm


def catalogue_logits(config: LossConfig, vectors: Array, catalogue: Array) -> Array:
    """Return the logits of all items, with -inf in the padding column.

    Args:
      config: of the loss.
      vectors: float [..., W], outputs of the model.
      catalogue: float32 [V, W], what `to_item_vectors` returned for the item table.

    Returns:
      float32 [..., V].
    """
    logits = to_queries(config, vectors) @ catalogue.T
    return jnp.where(jnp.arange(catalogue.shape[0]) == 0, -jnp.inf, logits)


def loss_chunk_bytes(config: ComputeConfig) -> int:
    """Return the size of a chunk of logits in bytes.

    It is `config.loss_chunk_bytes` if set. Otherwise a chunk stays in the cache of a CPU core, or keeps
    an accelerator busy.
    """
    on_cpu = platform_of(config.platform) == "cpu"
    return config.loss_chunk_bytes or (CPU_CHUNK_BYTES if on_cpu else DEVICE_CHUNK_BYTES)


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
      config: kind of the loss.
      table: float [V, W] item embeddings; row 0 is padding.
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
    if config.kind == "full_softmax":
        total = _sum_full_softmax(config, table, positions, chunk_bytes)
    else:
        if negatives is None:
            _, targets, weights, numbers = positions
            num_items = table.shape[0] - 1
            drawn = sample_negatives(config, num_items, targets, weights, rng, numbers)
        else:
            drawn = negatives, jnp.zeros(table.shape[0])  # uniform: any constant cancels
        total = _sum_sampled_softmax(config, table, positions, drawn, chunk_bytes)
    return total, jnp.sum(positions.weights)


def sample_negatives(
    config: LossConfig,
    num_items: int,
    targets: Array,  # T
    weights: Array,  # T
    rng: PRNGKey,
    numbers: Array,  # T
) -> tuple[Array, Array]:
    """Draw negative ids with replacement.

    They are uniform over the catalogue. With `in_batch` they are drawn from the targets of the
    (micro-)batch, so by their frequency there.

    Args:
      config: how many, and whether positions share them.
      num_items: items of the catalogue, without padding.
      targets, weights, numbers: of `Positions`.
      rng: random key.

    Returns:
      (ids int32 [R] if positions share them, else [T, R]; float32 [V], log probability of each item).
    """

    def draw(low: int, high: int | Array) -> Array:
        def once(key: PRNGKey) -> Array:
            return jax.random.randint(key, (config.negatives,), low, high)

        return per_row(once, rng, numbers) if config.sharing == "per_position" else once(rng)

    if not config.in_batch:
        ids = draw(1, num_items + 1)
        return ids, jnp.full(num_items + 1, -jnp.log(float(num_items)))
    present = (weights > 0).astype(jnp.int32)
    rank = jnp.cumsum(present)
    ids = targets[jnp.searchsorted(rank, draw(0, jnp.maximum(rank[-1], 1)) + 1)]
    counts = jnp.zeros(num_items + 1).at[targets].add(present.astype(jnp.float32))
    total = jnp.maximum(rank[-1], 1).astype(jnp.float32)
    return ids, jnp.log(jnp.maximum(counts, 1.0) / total)


def _sum_full_softmax(
    config: LossConfig, table: Array, positions: Positions, chunk_bytes: int
) -> Array:
    vectors, targets, weights, _ = positions
    queries, table = to_queries(config, vectors), to_item_vectors(config, table)
    positives, items = table[targets], table[1:]  # without the padding column
    if items.shape[0] > MANY_ITEMS:
        # A gradient of the whole table for every chunk of positions would cost more.
        total = log_partition_sum(queries, items, weights, chunk_bytes)
        return total - jnp.sum(queries * positives * weights[:, None])
    chunk = _chunk_positions(chunk_bytes, items.shape[0])
    return weighted_sum(_full_softmax, items, (queries, positives), (), (), weights, chunk)


def _sum_sampled_softmax(
    config: LossConfig,
    table: Array,
    positions: Positions,
    drawn: tuple[Array, Array],
    chunk_bytes: int,
) -> Array:
    """Return the weighted sum; drawn: what `sample_negatives` returned."""
    vectors, targets, weights, _ = positions
    ids, log_q = drawn

    def with_log_q(ids: Array) -> IdsAndLogQ:
        return ids, log_q[ids] if config.log_q else None

    sampled, own = with_log_q(ids), with_log_q(targets)
    if config.sharing == "shared":
        # Gather first, then normalise: the cost does not grow with the catalogue.
        queries, negatives = to_queries(config, vectors), to_item_vectors(config, table[ids])
        rows = queries, to_item_vectors(config, table[targets])
        chunk = _chunk_positions(chunk_bytes, config.negatives)
        return weighted_sum(_shared_negatives, negatives, rows, sampled, own, weights, chunk)
    queries, items = to_queries(config, vectors), to_item_vectors(config, table)
    chunk_bytes = max(chunk_bytes, items.size)  # each chunk adds to a gradient of all items
    chunk = _chunk_positions(chunk_bytes, config.negatives * table.shape[1])
    rows = queries, items[targets]
    return weighted_sum(_own_negatives, items, rows, (), (sampled, own), weights, chunk)


def _chunk_positions(chunk_bytes: int, numbers: int) -> int:
    """Return the positions of a chunk; numbers: float32 of each position."""
    return max(MIN_CHUNK, chunk_bytes // (4 * numbers))


# Each of these is a `chunked_sums.RowLoss`: float32 [chunk] of (shared, rows, context, row_context).
# Positives are looked up outside, so that their gradient is one scatter and not one for every chunk.


def _full_softmax(items: Array, rows: QueriesAndPositives, context: tuple, _: tuple) -> Array:
    queries, positives = rows
    return _logsumexp(queries @ items.T) - jnp.sum(queries * positives, axis=-1)


def _shared_negatives(
    negatives: Array, rows: QueriesAndPositives, sampled: IdsAndLogQ, targets: IdsAndLogQ
) -> Array:
    return _sampled_softmax(rows[0] @ negatives.T, rows, sampled, targets)


def _own_negatives(
    items: Array, rows: QueriesAndPositives, _: tuple, row_context: tuple[IdsAndLogQ, IdsAndLogQ]
) -> Array:
    sampled, targets = row_context
    logits = jnp.einsum("td,trd->tr", rows[0], items[sampled[0]])
    return _sampled_softmax(logits, rows, sampled, targets)


def _sampled_softmax(
    logits: Array, rows: QueriesAndPositives, sampled: IdsAndLogQ, targets: IdsAndLogQ
) -> Array:
    """Return the loss of each position; logits [chunk, R] are those of the negatives.

    The arrays of `sampled` are [R] or [chunk, R], those of `targets` [chunk].
    """
    (queries, positives), (ids, sampled_log_q), (target_ids, target_log_q) = rows, sampled, targets
    positive = jnp.sum(queries * positives, axis=-1)
    if target_log_q is not None and sampled_log_q is not None:
        # Yi et al. 2019; for uniform negatives it cancels.
        positive = positive - target_log_q
        logits = logits - sampled_log_q
    logits = jnp.where(ids == target_ids[:, None], -jnp.inf, logits)
    # Not one array with the positive: what is large is written once and read as rarely as possible.
    top = jax.lax.stop_gradient(jnp.maximum(positive, jnp.max(logits, axis=-1)))
    total = jnp.exp(positive - top) + jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)
    return jnp.log(total) + top - positive


def _logsumexp(logits: Array) -> Array:
    """Reduce the last axis of finite logits, with fewer passes over a big array than jax.nn's."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[:, 0]
