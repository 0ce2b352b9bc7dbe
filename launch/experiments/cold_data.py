"""Data with cold items: some items lose all events but those that are test targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.errors import UserError

_PARTS = 1000  # a share is a number of these


def choose_cold(raw_ids: list[str], share: float) -> np.ndarray:
    """Choose items by a hash of their raw ids, whatever their order.

    Args:
      raw_ids: of all items.
      share: of the items that become cold.

    Returns:
      bool [items].

    >>> choose_cold([str(i) for i in range(1000)], 0.1).sum().item() in range(70, 130)
    True
    """
    hashes = hash_strings([f"cold {name}" for name in raw_ids])
    return hashes % np.uint64(_PARTS) < np.uint64(round(share * _PARTS))


def prepare_cold(source: Dataset, directory: str | Path, share: float, data: DataConfig) -> Dataset:
    """Prepare a dataset in which a share of the items has no events before the test targets.

    Titles, categories and vectors of all items stay known, attributes do not. The order of each user's
    events stays.

    Args:
      source: a dataset with times.
      directory: for the log, the item table and the dataset, which lies in `data` there.
      share: of the items that become cold.
      data: names the protocol whose test targets stay. Its targets must be the last events of users.

    Raises:
      UserError: the dataset has no times, or no cold item is a test target.
    """
    if not source.has_times:
        raise UserError(f"--data={source.path} has an order only; take a dataset with times.")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    cold = np.concatenate([[False], choose_cold(source.items.raw_ids[1:], share)])
    rule = bound_rule(data, source)
    parts, targets = [], 0
    for index, has_targets in enumerate(rule.eligible(source.lengths, "test")):
        sequence = source.sequence(index)
        count = len(sequence.ids)
        end = rule.targets(count, "test", index)[0] if has_targets else count
        at = np.arange(count)
        kept = ~cold[sequence.ids] | (at >= end)
        targets += int((cold[sequence.ids] & (at >= end)).sum())
        assert sequence.times is not None
        columns = {
            "item": np.array(source.items.raw_ids)[sequence.ids[kept]],
            "timestamp": sequence.times[kept].astype(np.int64) + source.time_origin,
            "order": at[kept],
        }
        parts.append(pl.DataFrame(columns).with_columns(user=pl.lit(sequence.user)))
    if not targets:
        raise UserError(
            f"No test target of {source.path} is among the {cold.sum()} cold items; raise --share."
        )
    pl.concat(parts).write_parquet(folder / "log.parquet")
    names = ["raw_id", "title", "category"]
    names += [name for name in ("vector",) if name in source.item_table.columns]
    source.item_table.select(names).rename({"raw_id": "id"}).write_parquet(folder / "items.parquet")
    prepare(
        PrepareOptions(
            source="interactions",
            output_dir=str(folder / "data"),
            input=str(folder / "log.parquet"),
            items=str(folder / "items.parquet"),
            order_column="order",
            ties="keep",
            progress=False,
        )
    )
    return open_dataset(folder / "data")
