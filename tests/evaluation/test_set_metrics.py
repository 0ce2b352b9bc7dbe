"""Set-wise metrics against a list that is sorted and walked through, one user at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec2pm_jax.evaluation.metrics import summarize, target_ranks
from rec2pm_jax.evaluation.set_metrics import set_metrics


def slow_metrics(scores, targets) -> dict[str, float]:
    """Sort the catalogue, targets last among ties, and walk through the list."""
    items = sorted(range(1, len(scores)), key=lambda i: (-scores[i], i in targets))
    relevant = [item in targets for item in items]
    found = {}
    for k in (1, 10, 50):
        found[f"hr@{k}"] = float(any(relevant[:k]))
    for k in (10, 50):
        gain = sum(1 / math.log2(i + 2) for i, hit in enumerate(relevant[:k]) if hit)
        ideal = sum(1 / math.log2(i + 2) for i in range(min(k, len(targets))))
        found[f"ndcg@{k}"] = gain / ideal
        found[f"recall@{k}"] = sum(relevant[:k]) / len(targets)
    found["precision@10"] = sum(relevant[:10]) / 10
    precisions = [sum(relevant[: i + 1]) / (i + 1) for i in range(min(10, len(items)))]
    hits = zip(precisions, relevant[:10], strict=True)
    found["map@10"] = sum(p for p, hit in hits if hit) / len(targets)
    found["mrr"] = 1 / (relevant.index(True) + 1)
    return found


@given(
    st.integers(2, 70),
    st.integers(1, 5),
    st.sampled_from([2, 5, 1000]),  # distinct scores: from many ties to few
    st.randoms(use_true_random=False),
)
def test_metrics_equal_those_of_sorted_lists(items, users, levels, random):
    ranks, owners, expected = [], [], {}
    for user in random.sample(range(100), users):
        scores = np.array([random.randrange(levels) for _ in range(items + 1)], float)
        targets = random.sample(range(1, items + 1), random.randint(1, items))
        rows = np.tile(scores, (len(targets), 1))
        ranks += target_ranks(rows, np.array(targets)).tolist()
        owners += [user] * len(targets)
        expected[user] = slow_metrics(scores, set(targets))
    found = set_metrics(np.array(ranks), np.array(owners))
    for place, user in enumerate(sorted(expected)):
        assert set(found) == set(expected[user])
        for name, value in expected[user].items():
            assert found[name][place] == pytest.approx(value), name


def test_by_hand():
    found = summarize(np.array([1, 3, 12, 4]), np.array([0, 0, 0, 1]), sets=True)
    ideal = 1 + 1 / math.log2(3) + 0.5
    assert found["ndcg@10"] == pytest.approx(((1 + 0.5) / ideal + 1 / math.log2(5)) / 2)
    assert found["recall@10"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["precision@10"] == pytest.approx((0.2 + 0.1) / 2)
    assert found["map@10"] == pytest.approx(((1 + 2 / 3) / 3 + 1 / 4) / 2)
    assert found["mrr"] == pytest.approx((1 + 1 / 4) / 2)
    assert found["hr@1"] == 0.5 and found["hr@10"] == 1


def test_one_target_has_the_metrics_of_a_single_target():
    ranks = np.array([1, 7, 10, 11, 49, 90])
    sets, single = summarize(ranks, sets=True), summarize(ranks)
    assert {name: sets[name] for name in single} == pytest.approx(single)


def test_tied_targets_stand_behind_the_items_that_tie_with_them():
    # Five items tie at places 1 to 5, two of them targets: places 4 and 5.
    found = set_metrics(np.array([5, 5]), np.array([0, 0]))
    assert found["mrr"][0] == pytest.approx(1 / 4)
    assert found["map@10"][0] == pytest.approx((1 / 4 + 2 / 5) / 2)
