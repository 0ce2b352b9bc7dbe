"""Metrics by training events of the target's item, against loops over targets."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.item_frequency import by_training_events
from rec2pm_jax.evaluation.report import frequency_table, record_text
from rec2pm_jax.evaluation.spec import EvalSpec
from tests.helpers.data import prepare_log


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Items i0, i1, .. are rarer and rarer; the last event of a user may be of an item of its own."""
    path = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    rows = []
    for user in range(20):
        items = [f"i{int(i)}" for i in 12 * rng.random(8) ** 3]
        items += [f"only {user}"] if user % 4 == 0 else ["i0"]
        rows += [(f"u{user:02d}", item, 1000 + n) for n, item in enumerate(items)]
    prepare_log(pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row"), path)
    return open_dataset(path / "data")


@pytest.mark.smoke
def test_groups_agree_with_a_slow_count(dataset):
    data = DataConfig(protocol="leave_one_out")
    evaluation = evaluate_heuristic(Heuristic("popularity"), dataset, EvalSpec("test"), data)
    counts: dict[int, int] = {}
    for user in range(dataset.num_users):
        for item in dataset.sequence(user).ids[:-2].tolist():
            counts[item] = counts.get(item, 0) + 1
    groups: dict[str, list[float]] = {"0": [], "1-5": [], "more": []}
    for user, rank in zip(evaluation.user, evaluation.rank, strict=True):
        seen = counts.get(int(dataset.sequence(int(user)).ids[-1]), 0)
        name = "0" if seen == 0 else "1-5" if seen <= 5 else "more"
        groups[name].append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    rows = by_training_events(evaluation, dataset, data)
    assert [row["training_events"] for row in rows] == list(groups)
    assert sum(row["items"] for row in rows) == dataset.num_items
    for row, values in zip(rows, groups.values(), strict=True):
        assert row["targets"] == row["users"] == len(values)
        assert row["ndcg@10"] == (pytest.approx(np.mean(values)) if values else None)
    assert rows[0]["targets"] == 5 and rows[2]["targets"] == 15
    record = evaluation.record(config={}) | {"by_training_events": rows}
    assert frequency_table(rows) in record_text(record)
    assert "-" in frequency_table(rows).splitlines()[3]  # nobody's target is of the group 1-5
