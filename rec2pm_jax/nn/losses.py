"""Losses over the catalogue. Item embeddings are the input table (tied)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec2pm_jax.config import ComputeConfig, LossConfig
from rec2pm_jax.nn.chunks import log_partition_sum, weighted_sum
from rec2pm_jax.nn.dropout import per_row
from rec2pm_jax.nn.platform import platform_of
from rec2pm_jax.typing import Array, PRNGKey

MIN_CHUNK = 64  # positions; fewer would leave matrix products inefficient
CPU_CHUNK, DEVICE_CHUNK = 1 << 21, 1 << 28  # bytes
MANY_ITEMS = 1 << 15  # a chunk of logits over more items leaves the cache: split the catalogue too


def _unit(x: Array) -> Array:
    """x / sqrt(||x||^2 + 1e-12) over the last axis: smooth at 0, unlike a clipped norm."""
    norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
    return x / norm


def prepare(config: LossConfig, vectors: Array, table: Array) -> tuple[Array, Array]:
    """Outputs and item table in float32, so that logits are their dot products.

    With `normalize` both are L2-normalised; the temperature divides the outputs. This is the one
    definition of a logit, for training and for ranking.
    """
    vectors, table = vectors.astype(jnp.float32), table.astype(jnp.float32)
    if config.normalize:
        vectors, table = _unit(vectors), _unit(table)
    return vectors / config.temperature, table


def catalogue_logits(config: LossConfig, vectors: Array, catalogue: Array) -> Array:
    """[..., W] x [V, W] -> float32 [..., V]; the padding column is -inf.

    catalogue: the item table as `prepare` returns it.
    """
    vectors, _ = prepare(config, vectors, catalogue[:1])
    logits = vectors @ catalogue.T
    return jnp.where(jnp.arange(catalogue.shape[0]) == 0, -jnp.inf, logits)


def _logsumexp(logits: Array) -> Array:
    """Over the last axis. Finite logits only: fewer passes over a big array than jax.nn's."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[:, 0]


def chunk_bytes(config: ComputeConfig) -> int:
    """`loss_chunk_bytes`; 0: what stays in the cache of a CPU core, or keeps an accelerator busy."""
    on_cpu = platform_of(config.platform) == "cpu"
    return config.loss_chunk_bytes or (CPU_CHUNK if on_cpu else DEVICE_CHUNK)


def next_item_loss(
    config: LossConfig,
    vectors: Array,
    table: Array,
    targets: Array,
    weights: Array,
    rng: PRNGKey,
    rows: Array,
    chunk_bytes: int,
    negatives: Array | None = None,
) -> tuple[Array, Array]:
    """Cross-entropy of the next item: (weighted sum, sum of weights), float32 scalars.

    Args:
      vectors: [T, W] outputs, one per predicted position.
      table: [V, W] item embeddings, row 0 is padding.
      targets: int32 [T].
      weights: float32 [T], 0 where the position does not count, and then it costs nothing.
      rng: for the sampled negatives.
      rows: int32 [T], numbers of the positions, unique within the step: see `per_row`.
      chunk_bytes: how large the logits (or gathered negatives) of a chunk of positions may get.
      negatives: int32 [R], shared negatives drawn by the caller, uniformly over a catalogue of which
        `table` is a part. None: they are drawn here from all of `table`.
    """
    weights = jax.lax.stop_gradient(weights)
    if config.kind == "full_softmax":
        vectors, table = prepare(config, vectors, table)
        positives, items = table[targets], table[1:]  # without the padding column
        if items.shape[0] > MANY_ITEMS:
            # A gradient of the whole table for every chunk of positions would cost more.
            total = log_partition_sum(vectors, items, weights, chunk_bytes)
            return total - jnp.sum(vectors * positives * weights[:, None]), jnp.sum(weights)
        parts = (_full_softmax, items, (vectors, positives), (), ())
        width = items.shape[0]
    else:
        if negatives is None:
            num_items = table.shape[0] - 1
            ids, log_q = sample_negatives(config, num_items, targets, weights, rng, rows)
        else:
            ids, log_q = negatives, jnp.zeros(table.shape[0])  # uniform: any constant cancels

        def named(ids):  # ids and, where it is asked for, their log q
            return ids, log_q[ids] if config.log_q else None

        if config.sharing == "shared":
            # Gather first, then normalise: the cost does not grow with the catalogue.
            vectors, negatives = prepare(config, vectors, table[ids])
            _, positives = prepare(config, vectors, table[targets])
            parts = (_shared_negatives, negatives, (vectors, positives), named(ids), named(targets))
            width = config.negatives
        else:
            vectors, items = prepare(config, vectors, table)
            context = (named(ids), named(targets))
            parts = (_own_negatives, items, (vectors, items[targets]), (), context)
            width = config.negatives * table.shape[1]
            chunk_bytes = max(chunk_bytes, items.size)  # each chunk adds to a gradient of all items
    chunk = max(MIN_CHUNK, chunk_bytes // (4 * width))
    return weighted_sum(*parts, weights, chunk), jnp.sum(weights)


def sample_negatives(
    config: LossConfig, num_items: int, targets: Array, weights: Array, rng: PRNGKey, rows: Array
) -> tuple[Array, Array]:
    """Negative ids, and the log probability of drawing each catalogue id.

    Uniform over the catalogue with replacement, or with `in_batch` drawn from the targets of the
    (micro-)batch, so by their frequency there. ids: int32 [R] when shared, [T, R] per position;
    log_q: float32 [V].
    """

    def draw(low, high):
        def once(key):
            return jax.random.randint(key, (config.negatives,), low, high)

        return per_row(once, rng, rows) if config.sharing == "per_position" else once(rng)

    if not config.in_batch:
        ids = draw(1, num_items + 1)
        return ids, jnp.full(num_items + 1, -jnp.log(float(num_items)))
    present = (weights > 0).astype(jnp.int32)
    rank = jnp.cumsum(present)
    ids = targets[jnp.searchsorted(rank, draw(0, jnp.maximum(rank[-1], 1)) + 1)]
    counts = jnp.zeros(num_items + 1).at[targets].add(present.astype(jnp.float32))
    total = jnp.maximum(rank[-1], 1).astype(jnp.float32)
    return ids, jnp.log(jnp.maximum(counts, 1.0) / total)


# Each of these is a `chunks.RowLoss`: float32 [chunk] of (shared, rows, context, row_context). They
# look up the positives outside, so that their gradient is one scatter and not one for every chunk.


def _full_softmax(items, rows, context, row_context) -> Array:
    vectors, positives = rows
    return _logsumexp(vectors @ items.T) - jnp.sum(vectors * positives, axis=-1)


def _shared_negatives(negatives, rows, sampled, own) -> Array:
    return _sampled_softmax(rows[0] @ negatives.T, rows, sampled, own)


def _own_negatives(items, rows, context, row_context) -> Array:
    sampled, own = row_context
    logits = jnp.einsum("td,trd->tr", rows[0], items[sampled[0]])
    return _sampled_softmax(logits, rows, sampled, own)


def _sampled_softmax(negative: Array, rows, sampled, own) -> Array:
    """negative: logits [chunk, R]; sampled: ids and log q, [R] or [chunk, R]; own: [chunk] likewise."""
    (vectors, positives), (ids, sampled_log_q), (targets, own_log_q) = rows, sampled, own
    positive = jnp.sum(vectors * positives, axis=-1)
    if own_log_q is not None:  # Yi et al. 2019; for uniform negatives it cancels
        positive = positive - own_log_q
        negative = negative - sampled_log_q
    negative = jnp.where(ids == targets[:, None], -jnp.inf, negative)
    # Not one array with the positive: what is large is written once and read as rarely as possible.
    top = jax.lax.stop_gradient(jnp.maximum(positive, jnp.max(negative, axis=-1)))
    total = jnp.exp(positive - top) + jnp.sum(jnp.exp(negative - top[:, None]), axis=-1)
    return jnp.log(total) + top - positive
