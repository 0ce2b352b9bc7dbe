"""--suite=input: how fast Grain makes batches, compared with a SASRec step."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from launch.benchmarks import settings
from launch.benchmarks.case import Case, Work, Workload, make_model_case
from launch.benchmarks.train import make_step_case
from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.pipeline import train_iterator
from rec2pm_jax.data.prepare import prepare

USERS = 500


def make_cases(smoke: bool) -> list[Case]:
    """Return a row of batches and a row of a step; compare their tokens/s."""
    items = settings.SMOKE_ITEMS if smoke else settings.ITEMS
    model = settings.SMOKE_SASREC if smoke else settings.SASREC
    compute = {"accumulate": 1 if smoke else 8}
    config = settings.make_config("full", model, smoke=smoke, compute=compute)
    workload = Workload("step", items, config.train.batch_size, config.data.window)
    grain = make_model_case(
        config, workload, name="grain", group="input", build="inputs:build_batches"
    )
    return [grain, make_step_case(config, items, "input")]


def build_batches(config: dict[str, Any], items: int) -> Work:
    """Return the making of a batch from histories twice as long as the window, with times."""
    return _build_batches(from_dict(config), items)


def _build_batches(config: Config, items: int) -> Work:
    rng = np.random.default_rng(0)
    length = 2 * config.data.window
    log = pl.DataFrame(
        {
            "user": np.repeat(np.arange(USERS), length),
            "item": rng.integers(1, items + 1, USERS * length),
            "timestamp": np.tile(np.arange(length) * 60, USERS),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        file, target = Path(folder) / "log.parquet", Path(folder) / "data"
        log.write_parquet(file)
        options = PrepareOptions(
            source="interactions", input=str(file), output_dir=str(target), progress=False
        )
        prepare(options)
        dataset = open_dataset(target)
        iterator = train_iterator(dataset, config.data, config.train.batch_size, seed=0)
        next(iterator)  # from here on everything is in memory
    return Work(lambda: next(iterator), tokens=config.train.batch_size * config.data.window)
