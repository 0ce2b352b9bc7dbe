"""Let a trained model take items it was not trained with: the item table grows, old rows stay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rec2pm_jax.methods.method import Method
from rec2pm_jax.nn.catalogue.sharded_table import (
    SLICES,
    insert_new_rows,
    rows_to_ids,
    table_rows,
)
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.nn.item_features import CONTENT
from rec2pm_jax.training.step import TrainState
from rec2pm_jax.typing import PADDING_ID, Array, Params

_TABLE_PATH = ("embedding", TABLE)  # in parameters and in moments of an optimizer

_log = logging.getLogger(__name__)


def grow_items(params: Params, num_items: int) -> Params:
    """Return params whose item table has a row for each of `num_items` items and padding.

    A new row is the mean of the rows there, which scores no higher than known items do. A random row
    would not do: a score is a cosine, and some random directions score above popular items for most
    users. Such items can be read and recommended, but nothing about them is learned. With content
    (`nn/item_features.py`) a new row is 0.

    Args:
      params: with a whole item table [V, D].
      num_items: number of items, without padding.

    >>> params = {"embedding": {TABLE: jnp.array([[9.0, 9.0], [1.0, 0.0], [0.0, 2.0]])}}
    >>> grow_items(params, num_items=3)["embedding"][TABLE][-1].tolist()
    [0.5, 1.0]
    """
    table = params["embedding"][TABLE]
    rows, dim = table.shape
    fresh = num_items + 1 - rows
    if fresh <= 0:
        return params
    new = jnp.zeros((fresh, dim), table.dtype)  # content stands for new items
    if CONTENT not in params:
        warn_untrained(fresh)
        if rows > 1:
            new = jnp.broadcast_to(jnp.mean(table[1:], axis=0), (fresh, dim))
    return _with_table(params, jnp.concatenate([table, new]))


def grow_spread_items(params: Params, num_items: int, trained_items: int, dim: int) -> Params:
    """Do as `grow_items` for a sharded table that is spread over devices.

    Args:
      params: with a packed table over a mesh.
      num_items: number of items, without padding.
      trained_items: how many of them were there before; a spread table does not tell.
      dim: D, numbers per item.
    """
    table = params["embedding"][TABLE]
    table = _insert_rows(table, dim, num_items, lambda ids: jnp.zeros((len(ids), dim), table.dtype))
    if num_items > trained_items:
        table = _fill_new_rows(table, dim, num_items, trained_items, CONTENT not in params)
    return _with_table(params, table)


def warn_untrained(count: int) -> None:
    """Warn that so many items came after a checkpoint."""
    if count > 0:
        _log.warning(
            "%d items came after this checkpoint: their embeddings are not trained yet.", count
        )


def _with_table(params: Params, table: Array) -> Params:
    return {**params, "embedding": {**params["embedding"], TABLE: table}}


def grow_state(state: TrainState, method: Method, trained_items: int) -> TrainState:
    """Return a training state with rows for all items of `method`.

    The optimizer's moments of new rows are zero, as those of rows that had no gradient so far. A
    sharded table grows on the devices that hold it.

    Args:
      state: as a checkpoint holds it.
      method: over the larger catalogue.
      trained_items: number of items of the checkpoint.
    """

    def grow(path: Any, moments: Array) -> Array:
        if not _is_table(path):
            return moments
        fresh = method.num_items + 1 - moments.shape[0]
        return jnp.concatenate([moments, jnp.zeros((fresh, *moments.shape[1:]), moments.dtype)])

    if method.config.model.table == "sharded":
        return _grow_sharded(state, method, trained_items)
    params = grow_items(state.params, method.num_items)
    opt_state = jax.tree_util.tree_map_with_path(grow, state.opt_state)
    return TrainState(state.step, params, opt_state)


def _grow_sharded(state: TrainState, method: Method, trained_items: int) -> TrainState:
    """Grow a sharded table and its optimizer."""
    adagrad, dim = state.opt_state["table"], method.config.model.dim
    params = grow_spread_items(state.params, method.num_items, trained_items, dim)
    accumulator = _insert_rows(
        adagrad.accumulator, 1, method.num_items, lambda ids: jnp.zeros((len(ids), 1))
    )
    opt_state = {**state.opt_state, "table": adagrad._replace(accumulator=accumulator)}
    return TrainState(state.step, params, opt_state)


def _insert_rows(
    array: Array, width: int, num_items: int, make_rows: Callable[[Array], Array]
) -> Array:
    """Insert rows for new items on the devices that hold an array; see `insert_new_rows`.

    Args:
      array: divided by rows over a mesh.
      width: numbers of a row.
      num_items: number of items, without padding.
      make_rows: ids int32 [n] -> their rows [n, width].
    """
    rows, mesh = table_rows(num_items), array.sharding.mesh  # type: ignore[attr-defined]
    [axis] = mesh.axis_names
    slices, depth = SLICES // mesh.size, rows // SLICES
    more = depth - array.size // width // SLICES
    if not more:  # the new items fit into rows that were not in use
        return array

    def grow(part: Array) -> Array:
        own = slices * jax.lax.axis_index(axis) + jnp.arange(slices, dtype=jnp.int32)
        index = own[:, None] * depth + depth - more + jnp.arange(more, dtype=jnp.int32)
        fresh = make_rows(rows_to_ids(index.reshape(-1), rows)).reshape(slices, more, width)
        grown = insert_new_rows(part.reshape(-1, width), rows, fresh)
        return grown.reshape(-1, *part.shape[1:])

    by_rows = PartitionSpec(axis)
    return jax.jit(jax.shard_map(grow, mesh=mesh, in_specs=by_rows, out_specs=by_rows))(array)


def _fill_new_rows(
    table: Array, dim: int, num_items: int, trained_items: int, with_mean: bool
) -> Array:
    """Set the rows of new items of a spread table to the mean of the trained ones, or to 0.

    Rows that were not in use so far have random numbers, see `sharded_step.fresh_rows`.
    """
    mesh, rows = table.sharding.mesh, table_rows(num_items)  # type: ignore[attr-defined]
    [axis] = mesh.axis_names

    def fill(part: Array) -> Array:
        own = part.reshape(-1, dim)
        index = len(own) * jax.lax.axis_index(axis) + jnp.arange(len(own), dtype=jnp.int32)
        ids = rows_to_ids(index, rows)
        known = (ids > PADDING_ID) & (ids <= trained_items)
        total = jax.lax.psum(jnp.where(known[:, None], own, 0).sum(0, dtype=jnp.float32), axis)
        new = total / max(1, trained_items) if with_mean else jnp.zeros_like(total)
        is_new = (ids > trained_items) & (ids <= num_items)
        return jnp.where(is_new[:, None], new.astype(own.dtype), own).reshape(part.shape)

    by_rows = PartitionSpec(axis)
    return jax.jit(jax.shard_map(fill, mesh=mesh, in_specs=by_rows, out_specs=by_rows))(table)


def resize_abstract(abstract: TrainState, method: Method, num_items: int) -> TrainState:
    """Return the shapes that a state had with `num_items` items.

    Args:
      abstract: shapes, dtypes and shardings of a state of `method`.
      method: over the catalogue of `abstract`.
      num_items: number of items of the wanted shapes, for example those of a checkpoint.
    """
    if num_items == method.num_items:
        return abstract
    sharded = method.config.model.table == "sharded"
    new, old = table_rows(method.num_items), table_rows(num_items)

    def resize(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = leaf.shape
        if sharded and any(leaf.sharding.spec):  # cut along rows: packed, or one number for each
            shape = (shape[0] * old // new, *shape[1:])
        elif not sharded and _is_table(path):
            shape = (num_items + 1, *shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(resize, abstract)


def describe_growth(meta: Mapping[str, Any], data_hash: str, num_items: int) -> str:
    """Return a message for users: training continues with data that were appended to.

    Args:
      meta: the meta of the checkpoint.
      data_hash: content hash of the data now.
      num_items: number of items now.
    """
    return (
        f"The data were appended to since step {meta['step']} (content hash "
        f"{meta['data_hash'][:16]}, now {data_hash[:16]}): {meta['num_items']:,} items, now "
        f"{num_items:,}. Training continues with all of them. Batches stay a function of seed and "
        "step, of the grown data from here on: the pass over the old users is not finished. The "
        "best checkpoint is chosen anew, as validation has other targets now."
    )


def _is_table(path: Any) -> bool:
    """Return whether a tree path ends at the item table, or at a moment of it."""
    return tuple(getattr(key, "key", None) for key in path[-2:]) == _TABLE_PATH
