"""Heuristics against loops over events, and that nothing after training leaks into popularity."""

from __future__ import annotations

import numpy as np
import pytest

from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.methods.heuristics import personal_frequency, training_popularity
from tests.helpers.evaluate_fakes import FakeDataset, slow_rank

LENGTHS = [40, 3, 25, 60, 2, 33]


def slow_evaluation(dataset, rule, split, window=0, half_life=0.0, personal=True):
    """Ranks in order of user and position, everything by loops."""
    counts = [0] * (dataset.num_items + 1)
    for user in range(dataset.num_users):
        ids = dataset.sequence(user).ids
        for position in range(int(rule.train_end(len(ids)))):
            counts[ids[position]] += 1
    ranks = []
    for user in range(dataset.num_users):
        ids = dataset.sequence(user).ids
        for n in rule.targets(len(ids), split):
            scores = [(0.0, count) for count in counts]  # compared as pairs: popularity breaks ties
            first = max(0, n - window) if window else 0
            for position in range(first, n) if personal else ():
                weight = 0.5 ** ((n - 1 - position) / half_life) if half_life else 1.0
                item = ids[position]
                scores[item] = (scores[item][0] + weight, counts[item])
            order = sorted(scores[1:], reverse=True)
            # Last place among those that tie in both.
            ranks.append(len(order) - order[::-1].index(scores[ids[n]]))
    return ranks


@pytest.mark.parametrize("protocol", ["leave_one_out", "last_10"])
@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("setting", [{}, {"window": 5}, {"half_life": 4.0}])
def test_personal_frequency_matches_loops(protocol, split, setting):
    dataset = FakeDataset(LENGTHS)
    found = evaluate_heuristic(
        Heuristic("personal_frequency", **setting), dataset, EvalSpec(split, protocol=protocol)
    )
    expected = slow_evaluation(dataset, split_rule(protocol), split, **setting)
    np.testing.assert_array_equal(found.rank, expected)


@pytest.mark.parametrize("protocol", ["leave_one_out", "last_10"])
def test_popularity_matches_loops(protocol):
    dataset = FakeDataset(LENGTHS)
    found = evaluate_heuristic(
        Heuristic("popularity"), dataset, EvalSpec("test", protocol=protocol)
    )
    expected = slow_evaluation(dataset, split_rule(protocol), "test", personal=False)
    np.testing.assert_array_equal(found.rank, expected)
    assert found.record(config={})["skipped_users"] == {"leave_one_out": 1, "last_10": 2}[protocol]


def test_popularity_sees_no_validation_or_test_event():
    dataset = FakeDataset([30, 30], num_items=12)
    for ids in dataset._ids:
        ids[:10], ids[10:] = 1, 2  # the future is all item 2
    found = evaluate_heuristic(
        Heuristic("popularity"), dataset, EvalSpec("test", protocol="last_10")
    )
    assert (found.rank == 12).all()  # item 2 ties with all the items nobody was seen to choose


def test_only_the_window_counts_and_popularity_orders_the_rest():
    popularity = training_popularity([np.array([1, 1, 1, 2, 3, 3])], num_items=4)
    scores = personal_frequency(np.array([4, 4, 4, 2]), popularity, window=1)
    assert [slow_rank(scores, item) for item in (1, 2, 3, 4)] == [2, 1, 3, 4]


def test_newer_events_weigh_more_with_decay():
    flat = np.zeros(4)
    scores = personal_frequency(np.array([1, 1, 2]), flat, half_life=1.0)
    np.testing.assert_allclose(scores, [0, 0.75, 1.0, 0])


def test_a_user_without_events_gets_the_popularity_ranking():
    popularity = training_popularity([np.array([3, 3, 1])], num_items=3)
    scores = personal_frequency(np.empty(0, np.int32), popularity, window=5, half_life=2.0)
    assert [slow_rank(scores, item) for item in (3, 1, 2)] == [1, 2, 3]


def test_one_count_outweighs_any_popularity():
    popularity = training_popularity([np.full(10**6, 1)], num_items=2)
    assert personal_frequency(np.array([2]), popularity).argmax() == 2


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("popularty", {}, 'Did you mean "popularity"'),
        ("popularity", {"window": 5}, "popularity has none"),
        ("personal_frequency", {"window": -1}, "must not be negative"),
    ],
)
def test_bad_settings_are_user_errors(name, setting, message):
    with pytest.raises(UserError, match=message):
        evaluate_heuristic(
            Heuristic(name, **setting), FakeDataset(LENGTHS), EvalSpec("test", protocol="last_10")
        )


def test_no_user_long_enough_is_a_user_error():
    with pytest.raises(UserError, match="None of the 2 users has the 21 events"):
        evaluate_heuristic(
            Heuristic("popularity"), FakeDataset([5, 20]), EvalSpec("test", protocol="last_10")
        )
