"""The paper's preset trains rec2pm on data of MerRec's shape, with the command of its docstring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
EVENTS = ("item_view", "item_like", "item_add_to_cart_tap", "offer_make", "buy_start", "buy_comp")


def merrec(users=6, events=1010, products=400):
    """Rows in MerRec's columns and types, users mixed."""
    rng = np.random.default_rng(0)
    rows = users * events
    start = np.datetime64("2023-05-01", "ms")
    return pl.DataFrame(
        {
            "user_id": rng.permutation(np.repeat(np.arange(users), events)),
            "sequence_id": [f"s{i % 50}" for i in range(rows)],
            "event_id": rng.choice(EVENTS, rows),
            "product_id": [f"p{i}" for i in rng.integers(0, products, rows)],
            "stime": start
            + rng.integers(0, 180 * 86_400, rows)
            .astype("timedelta64[s]")
            .astype("timedelta64[ms]"),
            "brand_name": rng.choice(["a", "b"], rows),
            "c2_name": "shoes",
        }
    )


def launch(folder, module, *flags):
    command = [sys.executable, "-m", f"launch.{module}", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_few_steps_on_data_of_merrecs_shape(tmp_path):
    month = tmp_path / "merrec/20230501"
    month.mkdir(parents=True)
    merrec().write_parquet(month / "000000000000.parquet")
    launch(
        tmp_path,
        "prepare",
        "--source=merrec",
        "--input=merrec",
        "--min_user_events=1003",
        "--output_dir=data",
    )
    preset = ROOT / "launch/configs/paper_merrec_hstu.py"
    few = {"steps": 3, "batch_size": 2, "log_every": 1, "eval_every": 3}
    flags = [f"--config.train.{name}={value}" for name, value in few.items()]
    launch(tmp_path, "train", f"--config={preset}", "--data=data", "--workdir=run", *flags)
    rows = [json.loads(line) for line in (tmp_path / "run/train/train.jsonl").open()]
    losses = [row["loss/ar"] for row in rows]
    assert len(losses) == 3 and np.isfinite(losses).all()
    flags = ["--workdir=run", "--max_segments=5", "--json=test.json"]
    launch(tmp_path, "evaluate", *flags)
    (record,) = json.loads((tmp_path / "test.json").read_text())
    assert record["protocol"] == "leave_one_out" and record["state_bytes_per_user"] == 1024
    assert record["targets"] == 6
