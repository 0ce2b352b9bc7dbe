"""A model that meets items it was not trained with: the table grows, old rows stay."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.base import Method
from rec2pm_jax.nn.embedding import ITEM_SCALE
from rec2pm_jax.train.step import TrainState
from rec2pm_jax.typing import Params

_TABLE = ("embedding", "item_embedding")  # its path, in parameters and in moments of an optimizer

_log = logging.getLogger(__name__)


def grow_items(params: Params, num_items: int, seed: int) -> Params:
    """Gives the item table [V, D] a row for each of `num_items` items and padding.

    A new row depends on (seed, row) alone, so growing twice equals growing once. Such items can be read
    and recommended, but nothing about them is learned.
    """
    table = params["embedding"]["item_embedding"]
    rows, dim = table.shape
    fresh = jnp.arange(rows, num_items + 1)
    if not len(fresh):
        return params
    _log.warning(
        "%d items came after this checkpoint: their embeddings are initialised, not trained yet.",
        len(fresh),
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), fresh)
    new = jax.vmap(lambda key: ITEM_SCALE * jax.random.truncated_normal(key, -2, 2, (dim,)))(keys)
    table = jnp.concatenate([table, new.astype(table.dtype)])
    return {**params, "embedding": {**params["embedding"], "item_embedding": table}}


def grow_state(state: TrainState, num_items: int, seed: int) -> TrainState:
    """As `grow_items`, and the optimizer's moments of new rows are zero, as those of rows without
    a gradient so far."""

    def grown(path, moments):
        if not _is_table(path):
            return moments
        fresh = num_items + 1 - moments.shape[0]
        return jnp.concatenate([moments, jnp.zeros((fresh, *moments.shape[1:]), moments.dtype)])

    params = grow_items(state.params, num_items, seed)
    opt_state = jax.tree_util.tree_map_with_path(grown, state.opt_state)
    return TrainState(state.step, params, opt_state)


def with_items(abstract: TrainState, method: Method, num_items: int) -> TrainState:
    """The shapes `abstract` of a state of `method`, as they were with `num_items` items.

    Raises:
      UserError: the table is sharded: where its rows lie depends on how many there are.
    """
    if num_items == method.num_items:
        return abstract
    if method.config.model.table == "sharded":
        raise UserError(
            f"The checkpoint has {num_items:,} items and the data {method.num_items:,} by now; "
            "config.model.table=sharded cannot grow. Train a new workdir, or use "
            "config.model.table=whole where the table fits."
        )

    def resized(path, leaf):
        if not _is_table(path):
            return leaf
        shape = (num_items + 1, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(resized, abstract)


def growth_text(meta: Mapping[str, Any], data_hash: str, num_items: int) -> str:
    """What it means that a run goes on with data that were appended to, for people."""
    return (
        f"The data were appended to since step {meta['step']} (content hash "
        f"{meta['data_hash'][:16]}, now {data_hash[:16]}): {meta['num_items']:,} items, now "
        f"{num_items:,}, and training goes on with them. Batches stay a function of seed and step, of "
        "the grown data from here on: the pass over the old users is not finished. The best "
        "checkpoint is chosen anew, as validation has other targets now."
    )


def _is_table(path) -> bool:
    return tuple(getattr(key, "key", None) for key in path[-2:]) == _TABLE
