"""From a training run to a model that recommends."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import polars as pl

from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import Dataset, Items
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.sharded_table import is_spread
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.nn.item_features import CONTENT
from rec2pm_jax.stream import spread_table
from rec2pm_jax.stream.catalogue import Catalogue
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.record import ModelIdentity
from rec2pm_jax.training.checkpoint import FindDevices, load_for_inference
from rec2pm_jax.training.checkpoint_store import Meta
from rec2pm_jax.training.item_content import serving_params
from rec2pm_jax.training.new_items import warn_untrained
from rec2pm_jax.training.run_checks import open_training_data
from rec2pm_jax.typing import PADDING_ID, Params


def load_recommender(
    workdir: str | Path,
    data: str | Path | None = None,
    checkpoint: str = "best",
    find_devices: FindDevices | None = None,
) -> Recommender:
    """Load a trained model, see `rec2pm_jax.load`.

    Args:
      workdir: of a training run, complete or not.
      data: the prepared dataset it was trained on; None for the place that the run has noted.
      checkpoint: "best" (by validation NDCG@10) or "latest".
      find_devices: as for `load_for_inference`.

    Raises:
      UserError: there is no readable checkpoint or dataset, or the dataset has another content.
    """
    config, params, meta = load_quietly(workdir, checkpoint, find_devices)
    dataset = open_training_data(data, workdir, meta)
    return make_recommender(config, params, dataset, trained_items=meta["num_items"])


def load_quietly(
    workdir: str | Path, checkpoint: str = "best", find_devices: FindDevices | None = None
) -> tuple[Config, Params, Meta]:
    """Return what `load_for_inference` returns, without Orbax's warnings that it only reads."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return load_for_inference(workdir, checkpoint, find_devices)
    finally:
        logger.setLevel(level)


def make_recommender(
    config: Config,
    params: Params,
    dataset: Dataset,
    items: pl.DataFrame | None = None,
    trained_items: int | None = None,
) -> Recommender:
    """Return a recommender with the items and users of a dataset.

    Args:
      config: of the training run.
      params: as trained. Items that were appended to the dataset since get new rows, see
        `new_items.grow_items`. A table that is spread over devices is used up.
      dataset: that the model was trained on, with or without later days of events.
      items: serves these items; None: those of the dataset, which come first in any case.
      trained_items: how many items the model was trained with; a spread table does not tell.
    """
    table = dataset.item_table if items is None else items
    catalogue = Catalogue.from_dataset(dataset, config)
    if items is not None:
        catalogue = dataclasses.replace(catalogue, items=Items(items))
    method, counts = make_method(config, table.height), catalogue.items.counts
    if is_spread(params["embedding"][TABLE]):
        assert trained_items is not None, "how many items were there?"
        warn_untrained(table.height - trained_items)
        identity = spread_table.identify(config, params, trained_items)
        served = serving_params(config, params, table, trained_items)
        method, served = spread_table.place(method, served, counts)
        return Recommender(method, served, catalogue, identity, dataset)
    identity = ModelIdentity.from_params(config, params)
    served = _with_unknown_row(serving_params(config, params, table), counts)
    trained = params if CONTENT in params else None
    return Recommender(method, served, catalogue, identity, dataset, trained)


def _with_unknown_row(params: Params, counts: np.ndarray) -> Params:
    """Return params in which row 0 stands for unknown items: the mean vector of all events."""
    table = params["embedding"][TABLE]
    shares = jnp.asarray(counts / max(1, counts.sum()), table.dtype)
    table = table.at[PADDING_ID].set(shares @ table)
    return {**params, "embedding": {**params["embedding"], TABLE: table}}
