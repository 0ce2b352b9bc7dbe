"""The events that a pass reads, and how a training batch is cut into them."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.nn.dropout import per_row
from rec2pm_jax.nn.gaps import GAPS, gap_buckets
from rec2pm_jax.typing import PADDING_ID, Array, Batch, Events, PRNGKey

Tree = TypeVar("Tree")

UNKNOWN_TIME = -(2**31)  # the request time of a request without one
UNKNOWN_SHARE = 1 / 16  # of the rows of training, see `training_events`
_KNOWN = 0x6B6E6F  # folded into the step's key


class Window(NamedTuple):
    """The events that one pass reads, padded on the right.

    Attributes:
      events: fields [B, N].
      lengths: int32 [B], events of each user.
      row_times: int32 [B, N], the query time of each event row; None for events without times.
      known: bool [B, N], whether the query time of each row is known; None where events have none.
      rows: int32 [B], row numbers that are unique within a training step; None at inference.
    """

    events: Events
    lengths: Array
    row_times: Array | None = None
    known: Array | None = None
    rows: Array | None = None

    @property
    def step_rows(self) -> Array:
        """The row numbers, in training."""
        assert self.rows is not None, "a window of training has row numbers"
        return self.rows

    @property
    def size(self) -> int:
        """N, padding included."""
        return self.events.ids.shape[1]

    def first(self, count: int) -> Window:
        """Return the window cut to its first `count` events."""
        by_event = self.events, self.row_times, self.known
        events, row_times, known = jax.tree.map(lambda a: a[:, :count], by_event)
        lengths = jnp.minimum(self.lengths, count)
        return self._replace(events=events, lengths=lengths, row_times=row_times, known=known)

    def take(self, places: Array) -> Window:
        """Return the window of the events at `places`, int32 [B, n]; lengths stay those of all."""
        by_event = self.events, self.row_times, self.known
        events, row_times, known = jax.tree.map(
            lambda a: jnp.take_along_axis(a, places, axis=1), by_event
        )
        return self._replace(events=events, row_times=row_times, known=known)

    def gaps(self) -> Array:
        """Return the bucket of the time from each event to its query time: int32 [B, N].

        GAPS stands for a query time that is not known.
        """
        times, row_times, known = self.events.times, self.row_times, self.known
        assert times is not None and row_times is not None and known is not None, "no times"
        return jnp.where(known, gap_buckets(row_times - times), GAPS)


class TrainingBatch(NamedTuple):
    """A training batch, cut.

    Attributes:
      windows: what reads see: K windows per user, folded into the batch (user after user). Window h
        holds the S + R - 1 events from h * S on; the first S of them are segment h.
      history: the K segments of each user as one row of K * S events.
      targets: int32 [B * K, S + R - 1], the next item of each event of `windows`.
      weights: float32, the same shape: of each target, 0 for padding.
    """

    windows: Window
    history: Window
    targets: Array
    weights: Array


def query_times(
    times: Array | None, lengths: Array, request_time: Array | None
) -> tuple[Array | None, Array | None]:
    """Return the query time of each event row: the next event's time, or the request's.

    Args:
      times: int32 [B, N], or None for events without times.
      lengths: int32 [B], valid events.
      request_time: int32 [B], query time of the last valid row; UNKNOWN_TIME, or None for all users,
        if it is not known. Then its own time stands for it.

    Returns:
      (query times int32 [B, N], whether each is known, bool [B, N]), or (None, None).
    """
    if times is None:
        return None, None
    following = jnp.concatenate([times[:, 1:], times[:, -1:]], axis=1)
    last = jnp.arange(times.shape[1], dtype=jnp.int32) == lengths[:, None] - 1
    if request_time is None:
        return jnp.where(last, times, following), ~last
    known = ~last | (request_time != UNKNOWN_TIME)[:, None]
    asked = jnp.where(known, request_time[:, None], times)
    return jnp.where(last, asked, following), known


def window_of(events: Events, valid: Array, request_time: Array | None) -> Window:
    """Return the window of a request or an update.

    Args:
      events: fields [B, N].
      valid: bool [B, N], true on a prefix of each row.
      request_time: int32 [B], query time of the last valid event, or None.
    """
    lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
    return Window(events, lengths, *query_times(events.times, lengths, request_time))


def training_events(batch: Batch, rng: PRNGKey | None) -> tuple[Window, Array, Array]:
    """Return the inputs of a batch as one window of T events, the targets, and their weights.

    A share UNKNOWN_SHARE of the rows does not know its query time, so that a model also learns to
    answer requests without a time.

    Args:
      batch: see `Method.loss`.
      rng: chooses these rows; None: all query times are known.

    Returns:
      (window with fields [B, T], targets int32 [B, T], weights float32 [B, T]: 0 for what is no target,
      and 1 for a target unless the batch weighs types of events).
    """
    ids, times, types = batch["ids"], batch.get("times"), batch.get("types")
    inputs = Events(
        ids[:, :-1],
        None if times is None else times[:, :-1],
        None if types is None else types[:, :-1],
    )
    targets = ids[:, 1:]
    row_times = known = None
    if times is not None:
        known = jnp.ones(targets.shape, bool)
        if rng is not None:
            known = per_row(
                lambda key: jax.random.bernoulli(key, 1 - UNKNOWN_SHARE, known.shape[1:]),
                jax.random.fold_in(rng, _KNOWN),
                batch["index"],
            )
        row_times = jnp.where(known, times[:, 1:], times[:, :-1])
    window = Window(inputs, _count(inputs.ids), row_times, known, batch["index"])
    return window, targets, target_weights(batch)


def target_weights(batch: Batch) -> Array:
    """Return the weights of the next items of a batch: float32 [B, T], see `training_events`."""
    if "weights" in batch:
        return batch["weights"][:, 1:]
    return (batch["ids"][:, 1:] != PADDING_ID).astype(jnp.float32)


def cut_windows(batch: Batch, data: DataConfig, rng: PRNGKey | None) -> TrainingBatch:
    """Cut a batch into the windows that reads see, and the whole segments of each user.

    Args:
      batch: see `Method.loss`.
      data: S, K and R.
      rng: see `training_events`.
    """
    whole, targets, weights = training_events(batch, rng)
    cut_parts = cut(
        (whole.events, targets, weights, whole.row_times, whole.known),
        data.segment,
        data.read_length,
        data.segments,
    )
    events, targets, weights, row_times, known = cut_parts
    rows = segment_rows(batch["index"], data.segments)
    windows = Window(events, _count(events.ids), row_times, known, rows)
    # The last R - 1 events belong to no segment.
    history = whole.first(data.segments * data.segment)
    return TrainingBatch(windows, history, targets, weights)


def up_to(ids: Array, lengths: Array) -> Array:
    """Keep the first `lengths` [B] of ids [B, N], and replace the rest by padding."""
    return jnp.where(jnp.arange(ids.shape[1]) < lengths[:, None], ids, PADDING_ID)


def cut(tree: Tree, segment: int, length: int, count: int) -> Tree:
    """Cut `count` windows [h * segment, h * segment + length), folded into the batch.

    Args:
      tree: arrays [B, T, ...] (or None).

    Returns:
      The same tree of arrays [B * count, length, ...].
    """
    index = np.arange(count)[:, None] * segment + np.arange(length)[None]
    return jax.tree.map(lambda a: a[:, index].reshape(-1, length, *a.shape[2:]), tree)


def segment_rows(rows: Array, count: int) -> Array:
    """Number the `count` segments of each row as `cut` orders them: int32 [B] -> [B * count]."""
    return (rows[:, None] * count + jnp.arange(count, dtype=jnp.int32)).reshape(-1)


def _count(ids: Array) -> Array:
    return jnp.sum(ids != PADDING_ID, axis=1, dtype=jnp.int32)
