"""The protocol `last_basket` against loops over events."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rec2pm_jax.config import Config, DataConfig
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.last_basket import find_baskets
from rec2pm_jax.data.pipeline import select_training_users
from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.histories import load_histories
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import make_targets, select_users
from tests.helpers.data import prepare_log, random_log
from tests.helpers.evaluate_fakes import PARAMS, FakeMethod, slow_rank

DATA = DataConfig(segment=5, segments=3, protocol="last_basket")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Baskets with repeated items; "one" has a single basket, "two" has two of them."""
    few = pl.DataFrame(
        {
            "user": ["one"] * 3 + ["two"] * 4,
            "item": ["i0", "i1", "i0", "i1", "i2", "i3", "i3"],
            "timestamp": [1_000] * 3 + [1_000, 1_000, 1_001, 1_001],
            "kind": ["view"] * 7,
        }
    )
    directory = tmp_path_factory.mktemp("baskets")
    prepare_log(pl.concat([random_log(), few]), directory)
    return open_dataset(directory / "data")


def baskets(dataset, user) -> list[list[int]]:
    """The positions of the events of each basket."""
    times, found = dataset.sequence(user).times, {}
    for position, time in enumerate(times):
        found.setdefault(int(time), []).append(position)
    return list(found.values())


def distinct(ids, positions) -> list[int]:
    """The positions of the first event of each item."""
    return [p for i, p in enumerate(positions) if ids[p] not in ids[positions[:i]]]


def test_the_last_two_baskets_are_held_out(dataset):
    rule = bound_rule(DATA, dataset)
    ends, trained = rule.train_ends(dataset.lengths), select_training_users(dataset, DATA)
    eligible = {split: rule.eligible(dataset.lengths, split) for split in ("validation", "test")}
    for user, n in enumerate(dataset.lengths):
        own = [[], [], *baskets(dataset, user)]
        assert list(range(ends[user])) == sum(own[:-2], [])
        assert (user in trained.users) <= (ends[user] > 0)
        for split, basket, before in (
            ("validation", own[-2], own[:-2]),
            ("test", own[-1], own[:-1]),
        ):
            expected = basket if any(before) else []
            assert rule.targets(int(n), split, user).tolist() == expected
            assert eligible[split][user] == bool(expected)
    one, two = (dataset.user_index(name) for name in ("one", "two"))
    assert not eligible["test"][one]
    assert eligible["test"][two] and not eligible["validation"][two] and ends[two] == 0


def test_targets_are_distinct_items_predicted_from_the_start_of_the_basket(dataset):
    rule = bound_rule(DATA, dataset)
    users, skipped = select_users(dataset.lengths, rule, "test", None, 0)
    assert skipped == 1
    found = make_targets(load_histories(dataset, users), rule, "test")
    expected = []
    for index, user in enumerate(users):
        last = baskets(dataset, user)[-1]
        ids = dataset.sequence(user).ids
        expected += [(index, last[0], event) for event in distinct(ids, last)]
    assert list(zip(*(field.tolist() for field in found), strict=True)) == expected
    assert any(event > position for _, position, event in expected)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_popularity_ranks_the_set(dataset, split):
    rule = bound_rule(DATA, dataset)
    counts = np.zeros(dataset.num_items + 1)
    for user, end in enumerate(rule.train_ends(dataset.lengths)):
        np.add.at(counts, dataset.sequence(user).ids[:end], 1)
    recall = []
    for user in range(dataset.num_users):
        own = [[], *baskets(dataset, user)]
        basket, before = (own[-1], own[:-1]) if split == "test" else (own[-2], own[:-2])
        if any(before):
            items = set(dataset.sequence(user).ids[basket].tolist())
            recall.append(sum(slow_rank(counts, item) <= 10 for item in items) / len(items))
    found = evaluate_heuristic(Heuristic("popularity"), dataset, EvalSpec(split), DATA)
    assert found.metrics["recall@10"] == pytest.approx(np.mean(recall))
    assert found.record(config={})["users"] == len(recall) == len(found.user_ndcg)


def test_a_model_reads_a_user_once_up_to_the_basket(dataset):
    method = FakeMethod(Config(data=DATA), dataset.num_items)
    found = evaluate(method, PARAMS, dataset, EvalSpec("test"))
    rule = bound_rule(DATA, dataset)
    expected = []
    for user in range(dataset.num_users):
        basket = baskets(dataset, user)[-1]
        positions = rule.targets(len(dataset.sequence(user).ids), "test", user)
        if len(positions):
            expected += [(user, basket[0])] * len(distinct(dataset.sequence(user).ids, basket))
    assert list(zip(found.user, found.position, strict=True)) == expected
    record = found.record(config={})
    low, high = record["intervals"]["ndcg@10"]
    assert low <= record["metrics"]["ndcg@10"] == found.user_ndcg.mean() <= high
    assert record["swap"]["ndcg@10"] != record["metrics"]["ndcg@10"]


def test_the_model_does_not_see_the_basket(dataset):
    """Exchanging the items within the last basket changes the order of ranks and nothing else."""
    method = FakeMethod(Config(data=DATA), dataset.num_items)

    def reversed_baskets(histories, targets):
        ids = histories.ids.copy()
        for user in range(len(histories.users)):
            last = histories.offsets[user + 1]
            first = histories.offsets[user] + targets.position[targets.user == user][0]
            ids[first:last] = ids[first:last][::-1]
        return histories._replace(ids=ids)

    found = evaluate(method, PARAMS, dataset, EvalSpec("test", swap=False))
    # Sets without a repeated item, so that the targets stay the same.
    spec = EvalSpec("test", swap=False, corrupt=reversed_baskets)
    other = evaluate(method, PARAMS, dataset, spec)
    lengths = dataset.lengths[found.user] - found.position
    whole = np.bincount(found.user)[found.user] == lengths
    assert whole.any()
    for user in np.unique(found.user[whole]):
        own = found.user == user
        assert sorted(found.rank[own]) == sorted(other.rank[own])


def test_a_dataset_without_times_is_refused(tmp_path):
    prepare_log(random_log(), tmp_path, time_column="", order_column="timestamp")
    with pytest.raises(UserError, match="protocol=last_basket needs times, and .*data has none"):
        bound_rule(DATA, open_dataset(tmp_path / "data"))


def test_users_with_one_basket_only(tmp_path):
    log = pl.DataFrame({"user": ["a", "a", "b"], "item": ["x", "y", "x"], "timestamp": [5, 5, 6]})
    prepare_log(log, tmp_path)
    dataset = open_dataset(tmp_path / "data")
    with pytest.raises(UserError, match="None of the 2 users has the 2 baskets"):
        select_users(dataset.lengths, bound_rule(DATA, dataset), "test", None, 0)
    with pytest.raises(UserError, match="None of the 2 users has the 3 baskets"):
        select_users(dataset.lengths, bound_rule(DATA, dataset), "validation", None, 0)


def test_baskets_end_with_their_user():
    offsets = np.array([0, 2, 2, 4])
    assert find_baskets(offsets, np.array([3, 3, 3, 3])).tolist() == [0, 2]
