"""Heuristics against loops over events, and that nothing after training leaks into popularity."""

from __future__ import annotations

import numpy as np
import pytest

from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation import heuristic as evaluated
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.metrics import summarize
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.methods import heuristics
from rec2pm_jax.methods.heuristics import (
    TIE,
    personal_frequency,
    training_popularity,
    training_transitions,
)
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
        ("counts_and_transitions", {"window": 5}, "counts_and_transitions has none"),
        ("popularity", {"popularity_weight": 1.0}, "Weights belong to counts_and_transitions"),
        ("counts_and_transitions", {"transition_weight": 1.0}, "give both"),
        (
            "counts_and_transitions",
            {"popularity_weight": -1.0, "transition_weight": 1.0},
            "give both, from 0 on",
        ),
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


def baskets_of_three(lengths=LENGTHS, **options):
    """Events of a user come three at a time; few items, so that they repeat within a basket."""
    dataset = FakeDataset(lengths, **options)
    dataset._times = [np.arange(n, dtype=np.int32) // 3 * 60 for n in lengths]
    return dataset


def slow_mix(dataset, split, weights, request_time_known):
    """Ranks by counts and transitions in order of user and position, everything by loops."""
    rule, size = split_rule("last_10"), dataset.num_items + 1
    counts, pairs = np.zeros(size), np.zeros((size, size))
    for user in range(dataset.num_users):
        ids = dataset.sequence(user).ids
        for position in range(int(rule.train_end(len(ids)))):
            counts[ids[position]] += 1
            if position:
                pairs[ids[position - 1], ids[position]] += 1
    ranks = []
    for user in range(dataset.num_users):
        ids, times = dataset.sequence(user).ids, dataset.sequence(user).times
        for n in rule.targets(len(ids), split):
            scores = weights[0] * counts / counts.sum() + TIE * counts / counts.max() / n
            for item in ids[:n]:
                scores[item] += 1 / n
            row = pairs[ids[n - 1]]
            scores += weights[1] * row / max(1, row.sum())
            left = set(range(1, size))
            if request_time_known:
                left -= {int(ids[i]) for i in range(n) if times[i] == times[n]}
            own = scores[ids[n]] - 1e-12
            lost = ids[n] not in left
            ranks.append(size - 1 if lost else sum(scores[item] >= own for item in left))
    return ranks


@pytest.mark.parametrize("request_time_known", [False, True])
@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.3, 0.3), (0.0, 3.0)])
def test_counts_and_transitions_match_loops(weights, request_time_known):
    dataset = baskets_of_three()
    one = Heuristic(
        "counts_and_transitions", popularity_weight=weights[0], transition_weight=weights[1]
    )
    spec = EvalSpec("test", protocol="last_10", request_time_known=request_time_known)
    found = evaluate_heuristic(one, dataset, spec)
    np.testing.assert_array_equal(
        found.rank, slow_mix(dataset, "test", weights, request_time_known)
    )


@pytest.mark.parametrize("request_time_known", [False, True])
def test_weights_are_those_that_rank_validation_best(monkeypatch, request_time_known):
    monkeypatch.setattr(evaluated, "POPULARITY_WEIGHTS", (0.0, 0.3, 3.0))
    monkeypatch.setattr(evaluated, "TRANSITION_WEIGHTS", (0.0, 3.0))
    dataset = baskets_of_three([60, 80, 45, 70], num_items=30)
    spec = EvalSpec("test", protocol="last_10", request_time_known=request_time_known)
    found = evaluate_heuristic(Heuristic("counts_and_transitions"), dataset, spec)
    users = np.repeat(np.arange(4), 10)
    ndcg = {
        (a, b): summarize(
            np.array(slow_mix(dataset, "validation", (a, b), request_time_known)), users
        )["ndcg@10"]
        for a in (0.0, 0.3, 3.0)
        for b in (0.0, 3.0)
    }
    config = found.record(config={"protocol": "x"})["config"]
    chosen = (config["popularity_weight"], config["transition_weight"])
    assert ndcg[chosen] == max(ndcg.values()) > min(ndcg.values())
    assert config["protocol"] == "x"
    expected = slow_mix(dataset, "test", chosen, request_time_known)
    np.testing.assert_array_equal(found.rank, expected)


@pytest.mark.parametrize("name", ["popularity", "personal_frequency"])
def test_items_of_the_current_basket_are_left_out(name):
    dataset = baskets_of_three([31], num_items=40)
    plain, known = (
        evaluate_heuristic(
            Heuristic(name), dataset, EvalSpec("test", protocol="last_10", request_time_known=k)
        )
        for k in (False, True)
    )
    ids = dataset.sequence(0).ids
    for target, n in enumerate(range(21, 31)):
        basket = ids[n - n % 3 : n]
        if ids[n] in basket:
            assert known.rank[target] == 40
        elif not len(basket):
            assert known.rank[target] == plain.rank[target]
        else:
            gain = plain.rank[target] - known.rank[target]
            assert 0 <= gain <= len(set(basket.tolist()))
    assert (known.rank < plain.rank).any()
    assert known.record(config={})["request_time_known"] is True
    assert plain.record(config={})["request_time_known"] is False


def test_a_request_time_needs_times():
    with pytest.raises(UserError, match="request_time_known needs a dataset with times"):
        evaluate_heuristic(
            Heuristic("popularity"),
            FakeDataset(LENGTHS, times=False),
            EvalSpec("test", protocol="last_10", request_time_known=True),
        )


def test_transitions_are_counted_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    users = [rng.integers(1, 7, n) for n in (50, 1, 0, 2, 90)]
    whole = training_transitions(users, 6)
    monkeypatch.setattr(heuristics, "_PAIRS", 10)
    parts = training_transitions(users, 6)
    pairs = np.zeros((7, 7))
    for ids in users:
        for before, after in zip(ids[:-1], ids[1:], strict=True):
            pairs[before, after] += 1
    for item in range(7):
        expected = pairs[item] / max(1, pairs[item].sum())
        np.testing.assert_allclose(whole.after(item), expected)
        np.testing.assert_array_equal(parts.after(item), whole.after(item))


def test_transitions_without_training_events():
    assert not training_transitions([], 3).after(2).any()
