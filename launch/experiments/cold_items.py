"""Measure how items without events are scored: by content, by ids alone, and by counts.

    python -m launch.experiments.cold_items --data=data/products --workdir=runs/cold --config=demo \\
        --config.train.steps=400

A share of the items loses all events but test targets (`cold_data.py`). Two models train on the rest,
with and without content. The table is printed and written to RESULTS/cold_items.json. Stopped, the same
command resumes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch.configs.flags import define_config, get_config
from launch.experiments.cold_data import prepare_cold
from launch.experiments.cold_scores import rank_counts, rank_model
from rec2pm_jax import cli
from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.data.splits import bound_rule, count_training_events
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.runs import TrainedModel, train_model
from rec2pm_jax.typing import Params

define_config()
flags.DEFINE_string("data", None, "Prepared dataset with times, and titles or categories.")
flags.DEFINE_string("workdir", None, "Directory of the cold dataset and the runs.")
flags.DEFINE_string("results", "results", "Directory of cold_items.json.")
flags.DEFINE_float("share", 0.1, "Share of the items that become cold.", 0, 1)
flags.DEFINE_integer("item_features", 8192, "Hashed values of the model with content.", 1)
flags.mark_flags_as_required(["data", "workdir"])


def main(_: list[str]) -> None:
    args = flags.FLAGS
    config, workdir = get_config(), Path(args.workdir)
    dataset = prepare_cold(open_dataset(args.data), workdir, args.share, config.data)
    rows = measure_cold(config, dataset, workdir, args.item_features)
    Path(args.results).mkdir(parents=True, exist_ok=True)
    write_records(Path(args.results) / "cold_items.json", rows)
    print("NDCG@10 in percent: known items, cold items, cold items among cold items")
    for row in rows:
        shown = (f"{100 * row[name]:6.2f}" for name in ("known", "cold_full", "cold_among_cold"))
        print(" ".join(shown), row["scores"])


def measure_cold(
    config: Config, dataset: Dataset, workdir: Path, features: int
) -> list[dict[str, Any]]:
    """Train with and without content, and return a record for each way to score cold items.

    Args:
      config: what to train; `model.item_features` is set here.
      dataset: of `prepare_cold`.
      workdir: for the runs.
      features: `model.item_features` of the model with content.

    Raises:
      UserError: as training does.
    """
    records = []
    cold = count_training_events(dataset, bound_rule(config.data, dataset)) == 0
    for name, value in (("content", features), ("ids", 0)):
        changed = dataclasses.replace(config.model, item_features=value)
        model = train_model(
            dataclasses.replace(config, model=changed), dataset, workdir / f"run_{name}"
        )
        for scores, params in _tables(model, cold, name).items():
            ranks = rank_model(model.method, params, dataset)
            run = {"config": to_dict(model.config), "step": model.meta["step"]}
            records.append({"scores": scores, **ranks.summarize(), **run})
    for scores, ranks in rank_counts(model.method, dataset).items():
        records.append({"scores": scores, **ranks.summarize()})
    about: dict[str, Any] = {"data_hash": dataset.content_hash, "git_commit": git_commit()}
    about |= {"cold_items": int(cold[1:].sum()), "cold_targets": int(ranks.cold.sum())}
    return [record | about for record in records]


def _tables(model: TrainedModel, cold: np.ndarray, name: str) -> dict[str, Params]:
    """Return the parameters of a model with other rows for cold items, by what they are."""
    if name == "content":
        return {"content": model.params}
    table = model.params["embedding"][TABLE]
    random = jax.random.truncated_normal(jax.random.key(0), -2, 2, table.shape)
    rows = {"random rows": 0.02 * random, "mean row": jnp.mean(table[~cold][1:], axis=0)}
    embedding = model.params["embedding"]
    return {"ids": model.params} | {
        f"ids, {text}": model.params
        | {"embedding": embedding | {TABLE: jnp.where(cold[:, None], row, table)}}
        for text, row in rows.items()
    }


if __name__ == "__main__":
    cli.run(main)
