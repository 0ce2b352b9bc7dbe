from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.errors import UserError


def test_leave_one_out_of_five_events():
    rule = split_rule("leave_one_out")
    assert rule.train_end(5) == 3
    assert rule.targets(5, "validation").tolist() == [3]
    assert rule.targets(5, "test").tolist() == [4]


def test_last_10_of_25_events():
    rule = split_rule("last_10")
    assert rule.train_end(25) == 5
    assert rule.targets(25, "validation").tolist() == list(range(5, 15))
    assert rule.targets(25, "test").tolist() == list(range(15, 25))


@pytest.mark.parametrize(("name", "shortest"), [("leave_one_out", 3), ("last_10", 21)])
def test_short_users_have_no_targets(name, shortest):
    rule = split_rule(name)
    assert rule.min_events == shortest
    assert len(rule.targets(shortest - 1, "test")) == 0
    assert len(rule.targets(shortest, "test")) == rule.count
    assert rule.targets(shortest, "validation")[0] == 1  # never an empty prefix


def test_genrec_trains_on_all_but_the_target_of_both_splits():
    rule = split_rule("genrec")
    assert rule.train_end(5) == 4 and rule.min_events == 2
    assert rule.targets(5, "validation").tolist() == rule.targets(5, "test").tolist() == [4]


@given(name=st.sampled_from(["last_10", "leave_one_out"]), n=st.integers(0, 300))
def test_training_validation_and_test_partition_the_end_of_a_history(name, n):
    rule = split_rule(name)
    parts = [np.arange(rule.train_end(n)), rule.targets(n, "validation"), rule.targets(n, "test")]
    if n >= rule.min_events:
        assert np.concatenate(parts).tolist() == list(range(n))


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UserError, match='Did you mean "last_10"'):
        split_rule("last10")
    with pytest.raises(UserError, match='Did you mean "test"'):
        split_rule("last_10").targets(30, "tests")
