"""Small logs and datasets."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl

from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.data.schema import Interactions, empty_items
from rec2pm_jax.data.sources import SOURCES


def random_log(users: int = 12, items: int = 9, events: int = 400, seed: int = 0) -> pl.DataFrame:
    """Return a log with uneven histories, many ties and repeated (user, time, item) rows."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": [f"u{int(u)}" for u in users * rng.random(events) ** 2],
            "item": [f"i{int(i)}" for i in items * rng.random(events) ** 2],
            "timestamp": rng.integers(1_000, 1_040, events),
            "kind": rng.choice(["view", "buy"], events),
        }
    )


def prepare_log(log: pl.DataFrame, directory: Path, name: str = "data", **options) -> dict:
    """Write `log` as Parquet and prepare it in `directory / name`; return its dataset.json."""
    file = directory / f"{name}.parquet"
    log.write_parquet(file)
    info, _ = prepare(
        PrepareOptions(
            source="interactions",
            input=str(file),
            output_dir=str(directory / name),
            progress=False,
            **options,
        )
    )
    return info


def prepare_frames(frames: list[pl.DataFrame], directory: Path, **options) -> dict:
    """Prepare canonical events, a frame at a time, in `directory / data`; return its dataset.json."""
    source = {"frames": lambda _options: Interactions(iter(frames), empty_items())}
    with patch.dict(SOURCES, source):
        info, _ = prepare(
            PrepareOptions("frames", str(directory / "data"), progress=False, **options)
        )
    return info


def make_dataset(directory: Path, lengths: list[int], types: bool = False) -> Dataset:
    """Prepare one user per length; event e of user u is item "u-e" at time 100 u + e."""
    rows = [
        (f"user{u:03d}", f"{u}-{e}", 100 * u + e) for u, n in enumerate(lengths) for e in range(n)
    ]
    log = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    log = log.with_columns(
        kind=pl.when(pl.col("timestamp") % 2 == 0).then(pl.lit("a")).otherwise(pl.lit("b"))
    )
    prepare_log(log, directory, type_column="kind" if types else "")
    return open_dataset(directory / "data")
