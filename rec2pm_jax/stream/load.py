"""From a workdir to something that recommends."""

from __future__ import annotations

from pathlib import Path

from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.stream.catalogue import Catalogue
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.record import ModelIdentity
from rec2pm_jax.train.checkpoint import load_for_inference
from rec2pm_jax.train.new_items import grow_items
from rec2pm_jax.train.run_checks import open_training_data
from rec2pm_jax.typing import Params


def load_recommender(
    workdir: str | Path, data: str | Path | None = None, checkpoint: str = "best"
) -> Recommender:
    """See `rec2pm_jax.load`."""
    config, params, meta = load_for_inference(workdir, checkpoint)
    return make_recommender(config, params, open_training_data(data, workdir, meta))


def make_recommender(config: Config, params: Params, dataset: Dataset) -> Recommender:
    """A loaded checkpoint with the catalogue of `dataset`, grown to its items."""
    trained = ModelIdentity.of(config, params)
    params = grow_items(params, dataset.num_items, config.train.seed)
    method = make_method(config, dataset.num_items)
    return Recommender(method, params, Catalogue.of(dataset, config.model), trained)
