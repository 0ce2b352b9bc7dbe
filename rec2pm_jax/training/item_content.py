"""The content of a dataset's items, for models that read it (`config.model.item_features`)."""

from __future__ import annotations

import jax.numpy as jnp
import polars as pl

from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.item_table import encode_content
from rec2pm_jax.data.splits import bound_rule, count_training_events
from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.catalogue.sharded_table import is_spread
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.nn.item_features import CONTENT, ItemContent, add_content
from rec2pm_jax.training.new_items import grow_items, grow_spread_items
from rec2pm_jax.typing import Params


def training_content(config: Config, dataset: Dataset) -> ItemContent | None:
    """Return the content to train with, or None for a model that reads none.

    Args:
      config: the configuration to train with.
      dataset: the data.

    Raises:
      UserError: nothing is known of the items.
    """
    if not config.model.item_features:
        return None
    content = _encode(config, dataset.item_table)
    if not (content.codes.any() or content.vectors.any()):
        raise UserError(
            f"config.model.item_features={config.model.item_features}, but {dataset.path} knows no "
            "titles, categories, attributes or vectors of items: set it to 0, or prepare the data with "
            "--items or --title_column."
        )
    counts = count_training_events(dataset, bound_rule(config.data, dataset))
    return content._replace(trained=jnp.asarray(counts > 0))


def serving_params(
    config: Config, params: Params, items: pl.DataFrame, trained_items: int | None = None
) -> Params:
    """Return parameters that serve all items of a table.

    Items without a row get a new one (`grow_items`), or their content alone where the model reads it.

    Args:
      config: of the training run.
      params: as trained; a sharded table is whole, or spread over devices.
      items: the item table of a dataset, with the items of training first.
      trained_items: how many items the model was trained with; None for a whole table, which tells.

    Raises:
      UserError: items have vectors of another length than in training.
    """
    params = _grow(config, params, items.height, trained_items)
    return add_content(params, _encode(config, items)) if CONTENT in params else params


def dataset_params(
    config: Config, params: Params, dataset: Dataset, trained_items: int | None = None
) -> Params:
    """Return `serving_params` for the items of a dataset; only a model of content reads its table."""
    if CONTENT in params:
        return serving_params(config, params, dataset.item_table, trained_items)
    return _grow(config, params, dataset.num_items, trained_items)


def _grow(config: Config, params: Params, num_items: int, trained_items: int | None) -> Params:
    """Return parameters with rows for all items."""
    if is_spread(params["embedding"][TABLE]):
        assert trained_items is not None, "how many items were there?"
        return grow_spread_items(params, num_items, trained_items, config.model.dim)
    return grow_items(params, num_items)


def _encode(config: Config, items: pl.DataFrame) -> ItemContent:
    return ItemContent(*map(jnp.asarray, encode_content(items, config.model.item_features)))
