"""Vectors whose inner products are the model's scores, and the items nearest to an item."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.methods.method import Method
from rec2pm_jax.nn.catalogue.topk import top_k
from rec2pm_jax.stream.compute import batches
from rec2pm_jax.stream.lines.events import (
    MALFORMED,
    UNKNOWN_ITEM,
    RawId,
    RawTime,
    RejectedInput,
    parse_id,
    parse_time,
)
from rec2pm_jax.stream.outcomes import Recommendation
from rec2pm_jax.stream.plan import plan_search, request_times
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.users.user_state import UserState
from rec2pm_jax.typing import Array, Events, Params, Readout, State


class UserVectors(NamedTuple):
    """What scores the catalogue for U users.

    Attributes:
      queries: float32 [U, D]; the inner product with a row of `item_vectors` is a score.
      own_ids: int32 [U, J], the items of a user whose scores get an addend; 0 for none.
      own_addends: float32 [U, J]. J is 0 for models without repeat head and exact memory.
    """

    queries: np.ndarray
    own_ids: np.ndarray
    own_addends: np.ndarray


@functools.partial(jax.jit, static_argnums=0)
def _read(
    method: Method,
    params: Params,
    state: State,
    events: Events,
    valid: Array,
    request_time: Array | None,
) -> Readout:
    readout = method.read(params, state, events, valid, request_time)
    return method.network.queries(readout)


def item_vectors(recommender: Recommender) -> np.ndarray:
    """Return the vectors of all items, float32 [number of items, D]: row i is item id i + 1."""
    return np.asarray(recommender.scored_table)[1 : recommender.catalogue.num_items + 1]


def user_vectors(
    recommender: Recommender, users: Sequence[UserState], time: RawTime = None
) -> UserVectors:
    """Return the vectors of users who have events.

    Args:
      users: at least one; their origin of time is the recommender's, as of `Recommender.user`.
      time: of the request, as in `Recommender.recommend`.

    Raises:
      RejectedInput: a `UserError`; the time is malformed.
      UserError: vectors are not finite, since training diverged.

    Example:
      >>> import rec2pm_jax
      >>> model = rec2pm_jax.load("runs/demo/rec2pm")
      >>> user = model.user(model.dataset.user(0))
      >>> found = user_vectors(model, [user])
      >>> scores = item_vectors(model) @ found.queries[0]
      >>> for item, addend in zip(found.own_ids[0], found.own_addends[0]):
      ...     scores[item - 1] += addend if item else 0
      >>> [best] = model.recommend(user, k=1)
      >>> bool(abs(scores.max() - best.score) < 1e-4)
      True
    """
    method, params = recommender.method, recommender.params
    when = parse_time(time, recommender.catalogue.rules)
    times = request_times(recommender.catalogue, when, len(users))
    parts = []
    for rows, real, inputs in batches.iter_reads(method, users):
        vectors, own = _read(method, params, *inputs, None if times is None else times[rows])
        arrays = (vectors, *own) if own else (vectors, *np.zeros((2, len(vectors), 0)))
        parts.append([np.asarray(array)[:real] for array in arrays])
    queries, ids, addends = map(np.concatenate, zip(*parts, strict=True))
    batches.check_finite(queries)
    batches.check_finite(addends)
    return UserVectors(queries, ids.astype(np.int32), addends.astype(np.float32))


def nearest_items(recommender: Recommender, item: RawId, k: int = 10) -> list[Recommendation]:
    """Return the `k` items most similar to an item, best first; the score is the cosine.

    Args:
      item: raw id.
      k: how many items.

    Raises:
      RejectedInput: a `UserError`; the item is unknown, or there are fewer than `k` others.
      UserError: vectors are not finite, since training diverged.

    Example:
      >>> import rec2pm_jax
      >>> near = nearest_items(rec2pm_jax.load("runs/demo/rec2pm"), "BANANAS", k=3)
      >>> len(near), 1 >= near[0].score >= near[1].score
      (3, True)
    """
    catalogue, table = recommender.catalogue, recommender.scored_table
    name = parse_id(item, "item", catalogue.rules)
    number = catalogue.items.id_of(name)
    if number is None:
        hint = catalogue.suggest(name)
        raise RejectedInput(UNKNOWN_ITEM, f"item {name!r} is not in the training data.{hint}")
    search = plan_search(catalogue, k, [name])
    if k == catalogue.num_items:
        raise RejectedInput(MALFORMED, f"k={k}, but there are {k - 1} other items")
    denied = jnp.full((1, 1), number, jnp.int32)
    scores, ids = top_k(table[number][None], table, search.k, first=1, denied=denied)
    batches.check_finite(np.asarray(scores))
    return catalogue.name_items(np.asarray(scores)[0], np.asarray(ids)[0], search)
