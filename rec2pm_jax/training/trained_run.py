"""Load a trained model together with the data it was trained on."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.devices import select_table_devices
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.training.checkpoint import load_for_inference
from rec2pm_jax.training.checkpoint_store import Meta
from rec2pm_jax.training.item_content import dataset_params
from rec2pm_jax.training.new_items import warn_untrained
from rec2pm_jax.training.run_checks import open_training_data
from rec2pm_jax.typing import Params


class TrainedRun(NamedTuple):
    """A trained model and its data.

    Attributes:
      config: the configuration of the training run.
      method: the method to serve with, over all items of `dataset`.
      params: its parameters.
      dataset: the data, with what was appended since the training.
      meta: the meta of the checkpoint (`step`, `num_items`, hashes and more).
    """

    config: Config
    method: Method
    params: Params
    dataset: Dataset
    meta: Meta


def load_run(
    workdir: str | Path,
    *,
    data: str | Path | None = None,
    checkpoint: str = "best",
    memory: str | None = None,
    devices: int | None = None,
) -> TrainedRun:
    """Load a training run to evaluate or to serve it.

    Args:
      workdir: directory of the run.
      data: directory of the dataset; None for the one it was trained on.
      checkpoint: "best" or "latest".
      memory: "overwrite" or "append" to serve the same weights with another fold; any other value
        keeps that of the run.
      devices: over how many devices a sharded item table is spread; None for all of the job. Every
        process of a job makes this call.

    Raises:
      UserError: there is no such checkpoint, the dataset is another one, or as
        `devices.select_table_devices`.
    """
    find_devices = functools.partial(select_table_devices, wanted=devices)
    config, params, meta = load_for_inference(workdir, checkpoint, find_devices)
    dataset = open_training_data(data, workdir, meta)
    if config.model.table == "sharded":
        warn_untrained(dataset.num_items - meta["num_items"])
    params = dataset_params(config, params, dataset, meta["num_items"])
    method = make_method(_serving_config(config, memory), dataset.num_items)
    return TrainedRun(config, method, params, dataset, meta)


def _serving_config(config: Config, memory: str | None) -> Config:
    """Return the configuration with another fold; methods without a memory ignore it.

    Programs are compiled for this machine, whatever the run was trained on.
    """
    config = dataclasses.replace(
        config, compute=dataclasses.replace(config.compute, platform="auto")
    )
    if memory not in ("overwrite", "append"):
        return config
    return dataclasses.replace(config, method=dataclasses.replace(config.method, memory=memory))
