"""Targets by event type against loops: splits, training batches, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import polars as pl
import pytest

from rec2pm_jax.config import Config, DataConfig, LossConfig, ModelConfig
from rec2pm_jax.config.target_types import parse_target_types
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.pipeline import select_training_users, train_iterator
from rec2pm_jax.data.split_rules import HoldOut
from rec2pm_jax.data.splits import SPLIT_RULES, bound_rule, split_rule
from rec2pm_jax.data.target_events import find_target_events, type_weights
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.histories import load_histories
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import make_targets, select_users
from rec2pm_jax.evaluation.validation import validate
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.methods.windows import target_weights
from tests.helpers.data import prepare_log, random_log
from tests.helpers.evaluate_fakes import PARAMS, FakeMethod
from tests.helpers.stream import with_random_zeros

SIZES = {"segment": 5, "segments": 3}
TIMED = {"split_time": "1030", "validation_days": 10 / 86_400}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Views and purchases of twelve users, with many equal times."""
    directory = tmp_path_factory.mktemp("types")
    prepare_log(random_log(events=900), directory, type_column="kind")
    return open_dataset(directory / "data")


def rule_of(dataset, protocol, types="buy"):
    return bound_rule(DataConfig(protocol=protocol, **TIMED), dataset, target_types=types)


def purchases(dataset, user) -> list[int]:
    """The positions of a user's purchases."""
    buy = dataset.event_types.index("buy") + 1
    return [p for p, kind in enumerate(dataset.sequence(user).types) if kind == buy]


@pytest.mark.parametrize(("protocol", "count"), [("leave_one_out", 1), ("last_10", 10)])
def test_the_last_purchases_are_held_out(dataset, protocol, count):
    rule = rule_of(dataset, protocol)
    evaluated = 0
    for user, n in enumerate(dataset.lengths):
        held = purchases(dataset, user)[-2 * count :]
        enough = len(held) == 2 * count and held[0] > 0
        evaluated += enough
        expected = (held[:count], held[count:], held[0]) if enough else ([], [], n)
        found = [rule.targets(int(n), split, user).tolist() for split in ("validation", "test")]
        assert (*found, rule.train_ends(dataset.lengths)[user]) == expected
        assert rule.eligible(dataset.lengths, "test")[user] == enough
    assert evaluated >= 3


@pytest.mark.parametrize("protocol", ["temporal", "temporal_set", "last_basket"])
def test_targets_of_an_interval_are_its_purchases(dataset, protocol):
    rule = rule_of(dataset, protocol)
    seen = 0
    for user, n in enumerate(dataset.lengths):
        moments = dataset.sequence(user).times + dataset.time_origin
        bought = purchases(dataset, user)
        if protocol == "last_basket":
            times = sorted({int(moments[p]) for p in bought})[-2:]
            intervals = [(t, t + 1) for t in times]
        else:
            intervals = [(1020, 1030), (1030, 2000)]
        for split, (low, high) in zip(("validation", "test"), intervals, strict=True):
            before = int((moments < low).sum())
            alone = protocol == "temporal"
            inside = [p for p in bought if low <= moments[p] < high and p and (before or alone)]
            assert rule.targets(int(n), split, user).tolist() == inside
            assert rule.eligible(dataset.lengths, split)[user] == bool(inside)
            if inside and not alone:
                assert rule.state_end(split, user) == before
            seen += len(inside)
    assert seen > 20


@pytest.mark.parametrize("name", ["leave_one_out", "last_10", "last_basket", "temporal_set"])
def test_all_types_are_the_targets_of_a_rule_without_types(dataset, name):
    plain, typed = rule_of(dataset, name, None), rule_of(dataset, name, "buy,view=0.5")
    for split in ("validation", "test"):
        eligible = plain.eligible(dataset.lengths, split)
        assert eligible.tolist() == typed.eligible(dataset.lengths, split).tolist()
        for user in np.flatnonzero(eligible):
            n = int(dataset.lengths[user])
            found, expected = (rule.targets(n, split, user) for rule in (typed, plain))
            assert found.tolist() == expected.tolist()


def test_held_out_users_are_tested_on_purchases(dataset, monkeypatch):
    name = "holdout_leave_one_out"
    base = split_rule("leave_one_out")
    monkeypatch.setitem(SPLIT_RULES, name, HoldOut(name, base, share=0.5))
    rule = rule_of(dataset, name)
    held = np.flatnonzero(rule.held)
    assert 0 < len(held) < dataset.num_users
    for user in held:
        expected = purchases(dataset, user)[-1:] if len(purchases(dataset, user)) > 1 else []
        assert rule.targets(int(dataset.lengths[user]), "test", user).tolist() == expected


def test_no_training_event_is_a_target(dataset):
    data = DataConfig(protocol="leave_one_out", **SIZES)
    rule = bound_rule(data, dataset, target_types="buy")
    users, _ = select_users(dataset.lengths, rule, "validation", None, 0)
    targets = make_targets(load_histories(dataset, users), rule, "validation")
    trained = select_training_users(dataset, data, "buy")
    ends = dict(zip(trained.users, trained.train_ends, strict=True))
    for user, event in zip(users[targets.user], targets.event, strict=True):
        assert ends.get(user, 0) <= event
    for user in trained.users:
        assert any(0 < p < ends[user] for p in purchases(dataset, user))


def test_batches_weigh_targets_by_type(dataset):
    data = DataConfig(protocol="leave_one_out", **SIZES)
    plain = next(train_iterator(dataset, data, 8, seed=0))
    assert "weights" not in plain
    batch = next(train_iterator(dataset, data, 8, seed=0, target_types="buy,view=0.25"))
    buy, view = (dataset.event_types.index(name) + 1 for name in ("buy", "view"))
    expected = np.select([batch["types"] == buy, batch["types"] == view], [1.0, 0.25])
    np.testing.assert_array_equal(batch["weights"], expected.astype(np.float32))
    np.testing.assert_array_equal(target_weights(batch), batch["weights"][:, 1:])
    np.testing.assert_array_equal(target_weights(plain), plain["ids"][:, 1:] > 0)
    only = next(train_iterator(dataset, data, 8, seed=0, target_types="buy"))
    assert (only["weights"][only["types"] != buy] == 0).all() and only["weights"].any()


def test_models_and_heuristics_rank_purchases_in_all_places(dataset):
    data = DataConfig(protocol="leave_one_out", **SIZES)
    config = Config(data=data, loss=LossConfig(target_types="buy"))
    method = FakeMethod(config, dataset.num_items)
    found = evaluate(method, PARAMS, dataset, EvalSpec("test", swap=False))
    expected = []
    for user in range(dataset.num_users):
        own = purchases(dataset, user)
        expected += [(user, own[-1])] if len(own) > 1 and own[-2] > 0 else []
    assert list(zip(found.user, found.event, strict=True)) == expected
    assert found.record(config={})["target_types"] == "buy"
    spec = EvalSpec("test", target_types="buy")
    other = evaluate_heuristic(Heuristic("popularity"), dataset, spec, data)
    np.testing.assert_array_equal(other.event, found.event)
    checked = evaluate(method, PARAMS, dataset, EvalSpec("validation", swap=False))
    assert len(checked.rank) == len(expected)


def test_validation_has_the_targets_of_an_evaluation(dataset):
    config = Config(
        data=DataConfig(protocol="last_10", **SIZES),
        loss=LossConfig(target_types="buy"),
        model=ModelConfig(dim=8, layers=1),
    )
    config = dataclasses.replace(
        config, method=dataclasses.replace(config.method, name="recent", exact_entries=0)
    )
    method = make_method(config, dataset.num_items)
    params = with_random_zeros(jax.jit(method.init)(jax.random.key(0)))
    expected = evaluate(method, params, dataset, EvalSpec("validation", swap=False)).metrics
    assert validate(method, params, dataset) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has ''"),
        ("buy,", "has ''"),
        ("buy,buy=2", "names 'buy' twice"),
        ("buy=0", "has 'buy=0'"),
        ("buy=-1", "has 'buy=-1'"),
        ("buy=much", "has 'buy=much'"),
        ("buy=inf", "has 'buy=inf'"),
        ("=1", "has '=1'"),
    ],
)
def test_texts_that_name_no_types_are_refused(text, message):
    with pytest.raises(UserError, match=f"target_types=.* {message}; write names"):
        LossConfig(target_types=text)


def test_weights_of_types():
    assert parse_target_types("purchase, cart=0.3") == {"purchase": 1.0, "cart": 0.3}


def test_types_without_events_are_refused_by_name(dataset, tmp_path):
    with pytest.raises(UserError, match="no event of type 'bye'; it has .*buy, view.*Did you mean"):
        type_weights("buy,bye", dataset)
    with pytest.raises(UserError, match="no event of type 'cart'"):
        train_iterator(dataset, DataConfig(**SIZES), 4, seed=0, target_types="cart")
    prepare_log(random_log(), tmp_path)
    untyped = open_dataset(tmp_path / "data")
    with pytest.raises(UserError, match="target_types=buy, but .* has no event types"):
        find_target_events("buy", untyped)
    spec = EvalSpec("test", target_types="buy")
    with pytest.raises(UserError, match="has no event types"):
        evaluate_heuristic(Heuristic("popularity"), untyped, spec)


def test_users_without_training_targets_are_refused_together(tmp_path):
    log = random_log().with_columns(kind=pl.lit("view"))
    last = log.group_by("user").last().with_columns(timestamp=pl.lit(5_000), kind=pl.lit("buy"))
    prepare_log(log.extend(last.select(log.columns).cast(log.schema)), tmp_path, type_column="kind")
    dataset = open_dataset(tmp_path / "data")
    data = DataConfig(protocol="temporal", split_time="4000", validation_days=0.001, **SIZES)
    with pytest.raises(UserError, match="no user has a training target of .*=buy under .*temporal"):
        select_training_users(dataset, data, "buy")
