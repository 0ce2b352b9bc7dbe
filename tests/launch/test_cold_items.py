"""Cold items: which events are removed, and the ranks of a model and of counts."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from launch.experiments.cold_data import choose_cold, prepare_cold
from launch.experiments.cold_items import measure_cold
from launch.experiments.cold_scores import Ranks
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.errors import UserError
from tests.helpers.data import prepare_log

SHARE = 0.3


def config_of():
    return from_dict(
        {
            "data": {"segment": 3, "segments": 2, "protocol": "leave_one_out"},
            "method": {"name": "recent"},
            "model": {"dim": 8, "layers": 1, "heads": 1},
            "train": {"steps": 2, "batch_size": 4, "eval_every": 2, "checkpoint_every": 2},
        }
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A log of 20 users and 15 items of three categories, with ties in time."""
    path = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(1)
    rows = [
        (f"u{u}", f"i{i}", 1000 + n // 3)
        for u in range(20)
        for n, i in enumerate(rng.integers(0, 15, 14))
    ]
    log = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    names = [f"i{n}" for n in range(15)]
    kinds = {"id": names, "title": names, "category": [f"c{n % 3}" for n in range(15)]}
    pl.DataFrame(kinds).write_csv(path / "items.csv")
    prepare_log(log, path, items=str(path / "items.csv"))
    return open_dataset(path / "data")


def test_only_targets_of_cold_items_stay(source, tmp_path):
    found = prepare_cold(source, tmp_path, SHARE, config_of().data)
    names = source.items.raw_ids[1:]
    cold = {name for name, is_cold in zip(names, choose_cold(names, SHARE), strict=True) if is_cold}
    assert 0 < len(cold) < 15
    for user in range(source.num_users):
        before = [source.items.raw_ids[i] for i in source.sequence(user).ids]
        kept = [name for name in before[:-1] if name not in cold] + before[-1:]
        sequence = found.sequence(found.user_index(source.user(user)))
        assert [found.items.raw_ids[i] for i in sequence.ids] == kept  # in the same order
    assert set(found.items.raw_ids[1:]) == set(names)
    assert found.items.categories[found.items.id_of("i4")] == "c1"
    reverse = choose_cold(names[::-1], SHARE)[::-1]
    np.testing.assert_array_equal(choose_cold(names, SHARE), reverse)


def test_data_without_cold_targets_are_refused(source, tmp_path):
    with pytest.raises(UserError, match="raise --share"):
        prepare_cold(source, tmp_path, 0.0, config_of().data)


def test_ranks_are_means_over_users():
    user, cold = np.array([0, 0, 1]), np.array([False, True, True])
    found = Ranks(user, cold, np.array([1, 3, 20]), np.array([0, 1, 3])).summarize()
    assert (found["known"], found["cold_full"], found["cold_among_cold"]) == (1, 0.25, 0.75)
    assert found["cold_median_rank"] == 11.5


@pytest.mark.slow
def test_models_and_counts_are_measured(source, tmp_path):
    config = config_of()
    dataset = prepare_cold(source, tmp_path, SHARE, config.data)
    rows = measure_cold(config, dataset, tmp_path, 16)
    names = ["content", "ids", "ids, random rows", "ids, mean row"]
    assert [row["scores"] for row in rows][:4] == names and len(rows) == 6
    for row in rows:
        assert row["cold_items"] > 0 and row["cold_targets"] > 0
        assert 0 <= row["cold_full"] <= row["cold_among_cold"] <= 1
    assert rows[0]["config"]["model"]["item_features"] == 16
