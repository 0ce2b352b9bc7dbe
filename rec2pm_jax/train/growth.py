"""A model that meets items it was not trained with: the table grows, old rows stay."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp

from rec2pm_jax.nn.embedding import ITEM_SCALE
from rec2pm_jax.typing import Params

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
        "%d items came after training: their embeddings are initialised, not trained.", len(fresh)
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), fresh)
    new = jax.vmap(lambda key: ITEM_SCALE * jax.random.truncated_normal(key, -2, 2, (dim,)))(keys)
    table = jnp.concatenate([table, new.astype(table.dtype)])
    return {**params, "embedding": {**params["embedding"], "item_embedding": table}}
