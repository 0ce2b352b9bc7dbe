"""A stand-in for what `make demo` leaves: a run on Complete Journey, with random parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.presets import load_preset
from rec2pm_jax.training.run_checks import fit_to_data
from tests.helpers.stream import save_run


def make_demo_run(directory: Path) -> None:
    """Write `directory/runs/demo/rec2pm` and its dataset, as examples of the documents expect it."""
    data = directory / "data/types"
    options = PrepareOptions("complete_journey", str(data), item="product_type", progress=False)
    prepare(dataclasses.replace(options, min_user_events=600))
    changes = {"model.layers": 1, "model.dim": 16}
    dataset = open_dataset(data)
    config = fit_to_data(load_preset("demo", changes), dataset)
    save_run(directory / "runs/demo/rec2pm", dataset, config)
