"""Metrics and measures of lists against what RecTools 0.19.0 returned for the same small case."""

from __future__ import annotations

import numpy as np
import pytest

from rec2pm_jax.evaluation.list_metrics import ItemFacts, list_metrics
from rec2pm_jax.evaluation.metrics import user_metrics

# Rankings of all 12 items for four users, the items that each chose, and training events (user, item).
RANKINGS = [
    [3, 1, 7, 12, 5, 2, 9, 4, 6, 8, 10, 11],
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1],
    [2, 9, 4, 1, 11, 3, 8, 6, 12, 5, 7, 10],
]
TARGETS = [[1, 5, 11], [2], [3, 1, 2, 4, 5, 6], [2, 9, 7, 12]]
TRAINING = [
    *((0, 1), (0, 1), (0, 3), (1, 1), (1, 2), (2, 1)),
    *((2, 5), (2, 7), (3, 2), (3, 4), (3, 4), (3, 8)),
]
CATEGORIES = [0, 1, 1, 2, 2, 3, 3, 1, 2, 3, 1, 2, 3]  # of items 0 to 12

# HitRate, NDCG(divide_by_achievable=True), Recall, Precision, MAP and MRR of each user.
OF_USERS = {
    "hr@1": [0.0, 0.0, 0.0, 1.0],
    "ndcg@1": [0.0, 0.0, 0.0, 1.0],
    "recall@1": [0.0, 0.0, 0.0, 0.25],
    "precision@1": [0.0, 0.0, 0.0, 1.0],
    "map@1": [0.0, 0.0, 0.0, 0.25],
    "hr@3": [1.0, 1.0, 0.0, 1.0],
    "ndcg@3": [0.296082, 0.63093, 0.0, 0.765361],
    "recall@3": [0.333333, 1.0, 0.0, 0.5],
    "precision@3": [0.333333, 0.333333, 0.0, 0.666667],
    "map@3": [0.166667, 0.5, 0.0, 0.5],
    "hr@5": [1.0, 1.0, 0.0, 1.0],
    "ndcg@5": [0.477624, 0.63093, 0.0, 0.636682],
    "recall@5": [0.666667, 1.0, 0.0, 0.5],
    "precision@5": [0.4, 0.2, 0.0, 0.4],
    "map@5": [0.3, 0.5, 0.0, 0.5],
    "mrr": [0.5, 0.5, 0.142857, 1.0],
}
# CatalogCoverage and AvgRecPopularity (both normalised), MeanInvUserFreq, and IntraListDiversity with
# the Hamming distance of one-hot categories, which is 2 for two categories.
OF_LISTS = {
    "coverage@1": 0.3333333333,
    "popularity@1": 0.1458333333,
    "novelty@1": 1.3537593748,
    "coverage@3": 0.75,
    "popularity@3": 0.1180555556,
    "novelty@3": 1.5691729165,
    "diversity@3": np.mean([1.3333333333, 1.3333333333, 2.0, 2.0]) / 2,
    "coverage@5": 0.9166666667,
    "popularity@5": 0.1083333333,
    "novelty@5": 1.6622556249,
    "diversity@5": 1.6 / 2,
}


def test_metrics_of_sets():
    pairs = [(user, item) for user, items in enumerate(TARGETS) for item in items]
    ranks = np.array([RANKINGS[user].index(item) + 1 for user, item in pairs])
    users = np.array([user for user, _ in pairs])
    found = user_metrics(ranks, users, sets=True, cutoffs=(1, 3, 5))
    for name, values in OF_USERS.items():
        assert found[name] == pytest.approx(values, abs=1e-6), name


def test_metrics_of_single_targets_are_those_of_sets_of_one():
    found = user_metrics(np.array([2, 1, 7]), np.array([0, 1, 2]), cutoffs=(3,))
    assert found["map@3"].tolist() == [0.5, 1.0, 0.0]
    assert found["recall@3"].tolist() == found["hr@3"].tolist() == [1.0, 1.0, 0.0]
    assert found["precision@3"] == pytest.approx([1 / 3, 1 / 3, 0.0])


def test_measures_of_lists():
    events, owners = np.zeros(13, np.int64), [set() for _ in range(13)]
    for user, item in TRAINING:
        events[item] += 1
        owners[item].add(user)
    facts = ItemFacts(events, np.array([len(o) for o in owners]), 4, np.array(CATEGORIES))
    found = list_metrics(np.array(RANKINGS), np.arange(4), facts, (1, 3, 5))
    for name, value in OF_LISTS.items():
        assert found[name] == pytest.approx(value), name
    assert found["diversity@1"] is None  # one item has no pair
