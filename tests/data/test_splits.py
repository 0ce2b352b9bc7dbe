"""Protocols against loops over events."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.config import Config, DataConfig
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.dates import parse_time
from rec2pm_jax.data.pipeline import select_training_users
from rec2pm_jax.data.split_rules import HOLDOUT_SHARE, HoldOut
from rec2pm_jax.data.splits import SPLIT_RULES, bound_rule, split_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.histories import load_histories
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import make_targets, select_users
from rec2pm_jax.methods.registry import config_hash
from tests.helpers.data import make_dataset, prepare_log, random_log
from tests.helpers.evaluate_fakes import PARAMS, FakeMethod


@pytest.mark.smoke
def test_leave_one_out_of_five_events():
    rule = split_rule("leave_one_out")
    assert rule.train_end(5) == 3
    assert rule.train_ends(np.arange(4)).tolist() == [
        0,
        0,
        0,
        1,
    ]  # what is held out is not trained on
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


LENGTHS = [30, 1, 25, 60, 2, 41, 22, 35]  # make_dataset: event e of user u is at 100 u + e


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("splits"), LENGTHS)


def temporal(time: int, days: float) -> DataConfig:
    return DataConfig(protocol="temporal", split_time=str(time), validation_days=days)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Users with events over the same 40 seconds."""
    directory = tmp_path_factory.mktemp("crowd")
    prepare_log(random_log(), directory)
    return open_dataset(directory / "data")


FROZEN = DataConfig(
    protocol="temporal_set",
    split_time="1030",
    validation_days=10 / 86_400,
    segment=5,
    segments=3,
)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_frozen_state_predicts_all_that_follows_as_one_set(crowd, split):
    rule, single = (bound_rule(FROZEN, crowd, name) for name in ("temporal_set", "temporal"))
    assert rule.train_ends(crowd.lengths).tolist() == single.train_ends(crowd.lengths).tolist()
    frozen, stop = (1020, 1030) if split == "validation" else (1030, 10_000)
    expected = []
    for user, n in enumerate(crowd.lengths):
        ids, moments = crowd.sequence(user).ids, crowd.sequence(user).times + crowd.time_origin
        before = int((moments < frozen).sum())
        inside = [p for p in range(n) if frozen <= moments[p] < stop]
        new = [p for i, p in enumerate(inside) if ids[p] not in ids[inside[:i]]]
        expected += [(user, before, p) for p in new if before]  # no state without events
        assert rule.eligible(crowd.lengths, split)[user] == bool(before and inside)
    users, _ = select_users(crowd.lengths, rule, split, 0, 0)
    found = make_targets(load_histories(crowd, users), rule, split)
    assert list(zip(users[found.user], found.position, found.event, strict=True)) == expected
    assert len(users) > 5 and len(expected) > 2 * len(users)
    assert rule.request_time(split) + crowd.time_origin == frozen
    with pytest.raises(ValueError, match="Bind"):
        split_rule("temporal_set").request_time(split)


def test_a_frozen_state_is_read_at_its_time(crowd):
    """The time of the first target, which nobody knows at T, changes no rank."""
    method = FakeMethod(Config(data=FROZEN), crowd.num_items)

    def later(histories, targets):
        times = histories.times.copy()
        for user in range(len(histories.users)):
            first = histories.offsets[user] + targets.position[targets.user == user][0]
            times[first : histories.offsets[user + 1]] += 977
        return histories._replace(times=times)

    found = evaluate(method, PARAMS, crowd, EvalSpec("test", swap=False))
    other = evaluate(method, PARAMS, crowd, EvalSpec("test", swap=False, corrupt=later))
    np.testing.assert_array_equal(found.rank, other.rank)
    assert found.record(config={})["users"] == len(found.user_ndcg)


@settings(max_examples=60, deadline=None)
@given(time=st.integers(2, 734), seconds=st.integers(1, 300))
def test_temporal_matches_loops(dataset, time, seconds):
    if time - seconds <= 0:
        return
    rule = bound_rule(temporal(time, seconds / 86_400), dataset)
    ends = rule.train_ends(dataset.lengths)
    for user, n in enumerate(dataset.lengths):
        train, targets = [], {"validation": [], "test": []}
        for position, relative in enumerate(dataset.sequence(user).times):
            moment = relative + dataset.time_origin
            if moment < time - seconds:
                train.append(position)
            elif position:
                targets["validation" if moment < time else "test"].append(position)
        assert list(range(ends[user])) == train
        for split, expected in targets.items():
            assert rule.targets(int(n), split, user).tolist() == expected
            assert rule.eligible(dataset.lengths, split)[user] == bool(expected)


def holdout(monkeypatch, base, share, **sizes) -> DataConfig:
    """Hold out another share of the users, so that a few users are enough for a test."""
    name = f"holdout_{base}"
    monkeypatch.setitem(SPLIT_RULES, name, HoldOut(name, split_rule(base), share))
    return DataConfig(protocol=name, **sizes)


@pytest.mark.parametrize("base", ["leave_one_out", "last_10"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_holdout_divides_users_and_keeps_their_targets(dataset, monkeypatch, base, fraction):
    data = holdout(monkeypatch, base, fraction)
    rule, plain = bound_rule(data, dataset), split_rule(base)
    for user, n in enumerate(dataset.lengths):
        held = rule.train_ends(dataset.lengths)[user] == 0
        assert held or rule.train_ends(dataset.lengths)[user] == n
        for split in ("validation", "test"):
            expected = plain.targets(int(n), split).tolist() if held else []
            assert rule.targets(int(n), split, user).tolist() == expected
            assert rule.eligible(dataset.lengths, split)[user] == bool(expected)


class Names:
    """As much of a dataset as a hold-out looks at."""

    def __init__(self, users):
        self.users, self.num_users = users, len(users)

    def user(self, index):
        return self.users[index]


def test_who_is_held_out_depends_on_the_id_alone(monkeypatch):
    def held(users, fraction):
        data = holdout(monkeypatch, "last_10", fraction)
        rule = bound_rule(data, Names(users))
        return {u for u, h in zip(users, rule.held, strict=True) if h}

    users = [f"user {i}" for i in range(4000)]
    some = held(users, HOLDOUT_SHARE)
    assert 320 < len(some) < 480
    assert held(users[::-3], 0.1) == some & set(users[::-3])
    assert some < held(users, 0.2)  # a larger share holds out the same people, and more


def test_a_rule_trains_on_no_target(dataset, monkeypatch):
    data = holdout(monkeypatch, "leave_one_out", 0.5, segment=3, segments=2)
    trained = set(select_training_users(dataset, data).users.tolist())
    users, skipped = select_users(dataset.lengths, bound_rule(data, dataset), "test", 0, 0)
    assert len(users) and len(trained) and not trained & set(users.tolist())
    assert skipped == len(LENGTHS) - len(users)
    histories = load_histories(dataset, users)
    targets = make_targets(histories, bound_rule(data, dataset), "test")
    lengths = dataset.lengths[users[targets.user]]
    np.testing.assert_array_equal(targets.position, lengths - 1)


@pytest.mark.parametrize("protocol", ["temporal", "holdout_last_10"])
def test_heuristics_under_a_protocol_that_depends_on_the_user(tmp_path, monkeypatch, protocol):
    data = temporal(1030, 10 / 86_400)
    if protocol == "holdout_last_10":
        data = holdout(monkeypatch, "last_10", 0.5)
    prepare_log(random_log(), tmp_path)
    dataset = open_dataset(tmp_path / "data")
    rule = bound_rule(data, dataset)
    popularity = np.zeros(dataset.num_items + 1)
    for user, end in enumerate(rule.train_ends(dataset.lengths)):
        for item in dataset.sequence(user).ids[:end]:
            popularity[item] += 1
    expected = []
    for user, n in enumerate(dataset.lengths):
        for position in rule.targets(int(n), "test", user):
            score = popularity[dataset.sequence(user).ids[position]]
            expected.append(int((popularity[1:] >= score).sum()))  # ties: the last place
    found = evaluate_heuristic(Heuristic("popularity"), dataset, EvalSpec("test"), data)
    assert found.rank.tolist() == expected and len(expected) > 10
    assert found.record(config={})["protocol"] == data.protocol


@pytest.mark.parametrize("protocol", ["temporal", "holdout_last_10"])
def test_a_model_is_evaluated_on_these_targets_and_never_on_what_it_was_trained_on(
    dataset, monkeypatch, protocol
):
    data = dataclasses.replace(temporal(330, 50 / 86_400), segment=5, segments=3)
    if protocol == "holdout_last_10":
        data = holdout(monkeypatch, "last_10", 0.5, segment=5, segments=3)
    method = FakeMethod(Config(data=data), dataset.num_items)
    rule = bound_rule(data, dataset)
    found = evaluate(method, PARAMS, dataset, EvalSpec("test", swap=False))
    expected = [
        (user, position)
        for user, n in enumerate(dataset.lengths)
        for position in rule.targets(int(n), "test", user)
    ]
    assert list(zip(found.user, found.position, strict=True)) == expected
    # Some who were trained on to the end, or far enough, have last events too.
    with pytest.raises(UserError, match=f"targets were training events under .*{data.protocol}"):
        evaluate(method, PARAMS, dataset, EvalSpec("validation", protocol="last_10"))


def test_times_may_be_dates():
    assert parse_time("2023-10-01") == 1_696_118_400
    assert parse_time("2023-10-01T12:00") == 1_696_118_400 + 12 * 3600
    assert parse_time("2023-10-01T12:00+09:00") == 1_696_118_400 + 3 * 3600
    assert parse_time("25913600") == 25_913_600


@pytest.mark.parametrize(
    ("time", "days", "message"),
    [
        ("736", 0.001, "leaves no events .* spans 1970-01-01T00:00:00 to 1970-01-01T00:12:14"),
        ("60", 1.0, "leaves no events to train on"),
        ("soon", 1.0, "'soon' is no time; write a date"),
        ("", 1.0, "needs config.data.split_time"),
        ("300", 0.0, "config.data.validation_days must be > 0"),
    ],
)
def test_split_times_without_data_are_refused(dataset, time, days, message):
    with pytest.raises(UserError, match=message):
        bound_rule(DataConfig(protocol="temporal", split_time=time, validation_days=days), dataset)


def test_no_user_has_targets(dataset, monkeypatch):
    data = holdout(monkeypatch, "last_10", 1e-9)
    with pytest.raises(UserError, match="8 users has the 21 events .* and is held out"):
        select_users(dataset.lengths, bound_rule(data, dataset), "test", 0, 0)


def test_a_dataset_without_times(tmp_path):
    class Timeless(Names):
        has_times, path = False, "data/ranks"

    with pytest.raises(UserError, match="data/ranks has none; use leave_one_out or last_10"):
        bound_rule(temporal(5, 1.0), Timeless([]))


def test_settings_at_their_neutral_value_leave_the_hash_of_old_runs_alone():
    plain = config_hash(Config())
    for field, value in (("split_time", "2023-01-01"), ("validation_days", 3.0)):
        assert config_hash(Config(data=DataConfig(**{field: value}))) != plain
    before = {"segment": 25, "segments": 16, "recent": 1, "protocol": "last_10"}
    assert config_hash(from_dict({"data": before})) == plain
