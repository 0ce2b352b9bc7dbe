"""Ranks against sorting, metrics against their formulas."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation import metrics
from rec2pm_jax.evaluation.record import Evaluation
from tests.helpers.evaluate_fakes import slow_rank

# Few distinct values, so that most rows have ties.
tied_scores = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2), elements=st.integers(-2, 2)
)


@given(tied_scores, st.randoms(use_true_random=False))
def test_rank_is_the_position_after_sorting_with_the_target_last_among_ties(scores, random):
    targets = np.array([random.randrange(1, scores.shape[1]) for _ in scores])
    expected = [slow_rank(row, target) for row, target in zip(scores, targets, strict=True)]
    np.testing.assert_array_equal(metrics.target_ranks(scores, targets), expected)


def test_rank_is_the_same_inside_jit():
    scores = np.random.default_rng(0).integers(0, 4, (9, 7)).astype(np.float32)
    targets = np.arange(9, dtype=np.int32) % 6 + 1
    jitted = jax.jit(metrics.target_ranks)(jnp.asarray(scores), jnp.asarray(targets))
    np.testing.assert_array_equal(jitted, metrics.target_ranks(scores, targets))


@given(tied_scores, st.randoms(use_true_random=False))
def test_excluded_items_are_as_if_they_were_not_there(scores, random):
    targets = np.array([random.randrange(1, scores.shape[1]) for _ in scores])
    excluded = np.array([[random.random() < 0.4 for _ in row] for row in scores])
    expected = []
    for row, target, out in zip(scores, targets, excluded, strict=True):
        left = [i for i in range(1, len(row)) if not out[i]]
        worst = len(row) - 1
        expected.append(sum(row[i] >= row[target] for i in left) if target in left else worst)
    np.testing.assert_array_equal(metrics.target_ranks(scores, targets, excluded), expected)


@pytest.mark.parametrize("padding", [np.inf, -np.inf, np.nan, 3.0])
def test_padding_column_never_counts(padding):
    scores = np.array([[padding, 1.0, 2.0, 3.0]])
    assert metrics.target_ranks(scores, np.array([2])) == 2


def test_equal_scores_rank_the_target_last():
    assert metrics.target_ranks(np.zeros((1, 6)), np.array([1])) == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [1, 2, 3])  # at the target, before and after it
def test_scores_that_are_not_finite_raise(bad, column):
    scores = np.zeros((2, 4))
    scores[1, column] = bad
    ranks = metrics.target_ranks(scores, np.array([2, 2]))
    assert ranks[0] == 3
    with pytest.raises(UserError, match="1 of 2 targets have NaN"):
        metrics.summarize(ranks)


@pytest.mark.smoke
def test_formulas_on_a_hand_computed_example():
    found = metrics.summarize(np.array([1, 3, 10, 11, 50, 51]))
    assert found["hr@1"] == pytest.approx(1 / 6)
    assert found["hr@10"] == pytest.approx(3 / 6)
    assert found["hr@50"] == pytest.approx(5 / 6)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 6)
    more = 1 / math.log2(12) + 1 / math.log2(51)
    assert found["ndcg@50"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11) + more) / 6)
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 11 + 1 / 50 + 1 / 51) / 6)
    assert tuple(found) == ("hr@1", "hr@10", "hr@50", "ndcg@10", "ndcg@50", "mrr")


def test_metrics_of_no_targets_are_refused():
    with pytest.raises(ValueError, match="No targets"):
        metrics.summarize(np.empty(0, np.int64))


def test_every_user_counts_the_same_however_many_targets():
    found = metrics.summarize(np.array([1, 1, 1, 100]), np.array([5, 5, 5, 8]))
    assert found["hr@10"] == 0.5


def test_user_means_are_in_ascending_order_of_user():
    means = metrics.user_means(np.array([1.0, 0.0, 0.5, 1.0]), np.array([7, 7, 2, 9]))
    np.testing.assert_allclose(means, [0.5, 0.5, 1.0])


def test_every_user_weighs_the_same_in_the_swapped_value_too():
    """Three targets hit and one missed: with equal ranks, own and swapped memory must be level."""
    user, rank = np.array([0, 0, 0, 1]), np.array([1, 1, 1, 1000])
    setting = {
        "backbone": None,
        "dataset": "d",
        "data_hash": "h",
        "split": "test",
        "skipped_users": 0,
    }
    evaluation = Evaluation(
        method="rec2pm",
        memory="overwrite",
        protocol="temporal",
        user=user,
        position=np.arange(4),
        event=np.arange(4),
        rank=rank,
        swapped_ranks={"all": rank},
        metrics=metrics.summarize(rank, user),
        wall_s=0.0,
        **setting,
    )
    assert evaluation.record(config={})["swap"]["ndcg@10"] == 0.5 == evaluation.metrics["ndcg@10"]
