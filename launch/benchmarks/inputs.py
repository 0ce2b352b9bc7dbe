"""--suite=input: how fast Grain makes batches, against what a SASRec step takes in."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from launch.benchmarks import settings
from launch.benchmarks.case import Case, Work, model_case
from launch.benchmarks.train import step_case
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.pipeline import train_iterator
from rec2pm_jax.data.prepare import prepare

USERS = 500


def cases(smoke: bool) -> list[Case]:
    """Batches by themselves and the step of SASRec; tokens/s of the two are to be compared."""
    items = settings.SMOKE_ITEMS if smoke else settings.ITEMS
    model = settings.SMOKE_SASREC if smoke else settings.SASREC
    compute = {"accumulate": 1 if smoke else 8}
    config = settings.setting("full", model, smoke=smoke, compute=compute)
    grain = model_case(
        config,
        name="grain",
        group="input",
        build="inputs:batches",
        mode="step",
        items=items,
        batch=config.train.batch_size,
        length=config.data.window,
    )
    return [grain, step_case(config, items, "input")]


def batches(config: dict[str, Any], items: int) -> Work:
    """One batch from a prepared data set of histories twice as long as the window, with times."""
    config = from_dict(config)
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
        next(iterator)  # everything is in memory from here on
    return Work(lambda: next(iterator), tokens=config.train.batch_size * config.data.window)
