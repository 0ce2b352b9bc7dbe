"""Lists, slices, cutoffs and rows per user against loops over one list or one target at a time."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.configs.measure_flags import get_measures
from rec2pm_jax.config import Config, DataConfig
from rec2pm_jax.data.splits import bound_rule, split_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.heuristic_ranking import recommend_by
from rec2pm_jax.evaluation.histories import Histories, load_histories
from rec2pm_jax.evaluation.list_metrics import ItemFacts, count_items, list_metrics
from rec2pm_jax.evaluation.metrics import summarize, user_metrics
from rec2pm_jax.evaluation.per_user import user_rows, write_user_rows
from rec2pm_jax.evaluation.ranking import recommend
from rec2pm_jax.evaluation.report import measures_tables, metrics_table
from rec2pm_jax.evaluation.slices import TargetFacts, slice_metrics
from rec2pm_jax.evaluation.spec import EvalSpec, Measures
from rec2pm_jax.evaluation.targets import Targets, make_targets
from rec2pm_jax.typing import Readout
from tests.helpers.evaluate_fakes import PARAMS, FakeDataset, FakeMethod

DATA = DataConfig(segment=5, segments=3)
LENGTHS = [23, 70, 4, 41, 21, 33]
ALL = Measures(cutoffs=(2, 5, 10), lists=True, slices=True)


class WithItems(FakeDataset):
    """Twelve items, the last of which has no category."""

    items = SimpleNamespace(categories=[None, *"aaabbbccddd", None])


@pytest.fixture(scope="module")
def dataset():
    return WithItems(LENGTHS)


def slow_lists(lists, users, facts, k) -> dict[str, float | None]:
    """Measure list after list, then user after user."""
    of_user: dict = {}
    seen = set()
    for row, user in zip(lists, users, strict=True):
        items = [item for item in row[:k] if item]
        seen |= set(items)
        pairs = [
            facts.categories[a] != facts.categories[b]
            for a, b in itertools.combinations(items, 2)
            if facts.categories[a] and facts.categories[b]
        ]
        total = max(facts.events.sum(), 1)
        novel = [-math.log2(max(facts.users[i], 1) / facts.num_users) for i in items]
        values = {
            "popularity": sum(facts.events[i] / total for i in items) / max(len(items), 1),
            "novelty": sum(novel) / max(len(items), 1),
            "diversity": np.mean(pairs) if pairs else None,
        }
        for name, value in values.items():
            if value is not None:
                of_user.setdefault(name, {}).setdefault(user, []).append(value)
    found = {f"coverage@{k}": len(seen) / (len(facts.events) - 1)}
    for name in ("popularity", "novelty", "diversity"):
        means = [np.mean(v) for v in of_user.get(name, {}).values()]
        found[f"{name}@{k}"] = float(np.mean(means)) if means else None
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1, 2, 5]))
def test_measures_of_lists_are_those_of_loops(seed, count, kinds):
    rng = np.random.default_rng(seed)
    events = rng.integers(0, 9, 13) * np.append(0, np.ones(12, int))
    events[1] += 1
    owners = np.minimum(events, rng.integers(1, 5, 13))
    facts = ItemFacts(events, owners, 5, np.append(0, rng.integers(0, kinds + 1, 12)))
    lists = np.array([rng.permutation(12)[:6] + 1 for _ in range(count)])
    lists[np.arange(6) >= rng.integers(0, 7, count)[:, None]] = 0  # too few items are left
    users = np.sort(rng.integers(0, 4, count))
    found = list_metrics(lists, users, facts, (1, 4, 6))
    for k in (1, 4, 6):
        for name, value in slow_lists(lists, users, facts, k).items():
            assert found[name] == pytest.approx(value), name
    assert found["incomplete_lists"] == sum(0 in row for row in lists)
    items = lists[lists > 0]
    unknown = [facts.categories[i] == 0 for i in items]
    assert found["uncategorised"] == pytest.approx(np.mean(unknown) if unknown else 0.0)


def test_training_events_are_counted(dataset):
    rule = bound_rule(DATA, dataset)
    facts = count_items(dataset, rule, dataset.items.categories)
    events, owners = Counter(), Counter()
    for user, end in enumerate(rule.train_ends(dataset.lengths)):
        own = dataset.sequence(user).ids[:end].tolist()
        events.update(own)
        owners.update(set(own))
    assert facts.events.tolist() == [events[i] for i in range(13)]
    assert facts.users.tolist() == [owners[i] for i in range(13)]
    assert facts.num_users == sum(rule.train_ends(dataset.lengths) > 0)
    assert facts.categories.tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 0]


@pytest.mark.parametrize("mask_seen", [False, True])
def test_a_model_recommends_the_best_items_that_are_left(dataset, mask_seen):
    method = FakeMethod(Config(data=DATA), dataset.num_items)
    histories = load_histories(dataset, np.array([0, 1]))
    targets = make_targets(histories, split_rule("last_10"), "test")
    scores = np.random.default_rng(0).integers(0, 4, (20, 13)).astype(np.float32)  # with ties
    readout = Readout(scores, None)
    lists = recommend(method, PARAMS, histories, targets, readout, 15, mask_seen=mask_seen)
    for row, user, n, own in zip(lists, targets.user, targets.position, scores, strict=True):
        first = histories.offsets[user]
        seen = (
            histories.ids[first + max(n - method.read_length, 0) : first + n] if mask_seen else []
        )
        left = [item for item in range(1, 13) if item not in seen]
        expected = sorted(left, key=lambda item, own=own: (-own[item], item))
        assert row.tolist() == expected + [0] * (15 - len(expected))


def test_lists_of_a_model_are_measured_beside_its_metrics(dataset):
    method = FakeMethod(Config(data=DATA), dataset.num_items)
    found = evaluate(method, PARAMS, dataset, EvalSpec("test", swap=False, measures=ALL))
    assert found.list_metrics["lists"] == len(found.rank)
    assert found.list_metrics["coverage@10"] == 1 and found.list_metrics["incomplete_lists"] == 0
    assert 0 < found.list_metrics["uncategorised"] < 0.2
    plain = evaluate(method, PARAMS, dataset, EvalSpec("test", swap=False))
    assert plain.list_metrics is None and plain.slices is None
    assert plain.metrics == {name: found.metrics[name] for name in plain.metrics}


@pytest.mark.parametrize("known", [False, True])
def test_lists_of_popularity(dataset, known):
    spec = EvalSpec("test", request_time_known=known, measures=Measures((3, 20), lists=True))
    found = evaluate_heuristic(Heuristic("popularity"), dataset, spec, DATA).list_metrics
    facts = count_items(dataset, bound_rule(DATA, dataset))
    best = sorted(range(1, 13), key=lambda i: (-facts.events[i], i))
    # Times of the fake dataset rise, so no basket has an earlier item.
    share = np.mean(facts.events[best[:3]]) / facts.events.sum()
    assert found["popularity@3"] == pytest.approx(share)
    assert found["coverage@3"] == 3 / 12 and found["coverage@20"] == 1
    assert found["incomplete_lists"] == found["lists"]  # there are 12 items, not 20
    assert found["diversity@3"] == len({best[0] < 4, best[1] < 4, best[2] < 4}) - 1 or known
    assert found["target_popularity"] > 0


def test_heuristics_recommend_nothing_of_the_current_basket():
    """The last two events of a user have one time: the second is asked for with the first known."""
    ids = np.array([4, 3, 2, 1, 5], np.int32)
    histories = Histories(np.array([7]), np.array([0, 5]), ids, np.array([0, 10, 20, 30, 30]), None)
    targets = Targets(np.array([0, 0]), np.array([3, 4]), np.array([3, 4]))

    def score(prefixes):
        yield np.tile(np.array([9.0, 5.0, 4.0, 4.0, 1.0, 0.0]), (len(prefixes), 1))

    for known, second in ((False, [1, 2, 3, 4, 5, 0]), (True, [2, 3, 4, 5, 0, 0])):
        lists = recommend_by(score, histories, targets, 5, known, 6)
        assert lists.tolist() == [[1, 2, 3, 4, 5, 0], second]


def test_slices_are_metrics_of_their_targets(dataset):
    spec = EvalSpec("test", measures=Measures((5,), slices=True))
    found = evaluate_heuristic(Heuristic("personal_frequency"), dataset, spec, DATA)
    groups: dict = {}
    born: dict = {}
    training = [dataset.sequence(user).ids[:-20] for user in range(dataset.num_users)]
    for user in range(dataset.num_users):
        sequence = dataset.sequence(user)
        for item, time in zip(sequence.ids, sequence.times, strict=True):
            born[item] = min(time, born.get(item, time))
    for place, (user, n) in enumerate(zip(found.user, found.event, strict=True)):
        sequence = dataset.sequence(user)
        item = sequence.ids[n]
        kind = "repeated" if item in sequence.ids[:n] else "new"
        length = "10-49" if n < 50 else "50-99"
        trained = str(sum(int(np.sum(ids == item)) for ids in training))
        trained = trained if trained == "0" else "1-5" if int(trained) < 6 else "6+"
        facts = ("item", kind), ("history_length", length), ("item_training_events", trained)
        for key in facts:
            groups.setdefault(key, []).append(place)
        age = (sequence.times[n] - born[item]) // 86_400
        assert age == 0
        groups.setdefault(("item_age_days", "0"), []).append(place)
    rows = {(kind, row["slice"]): row for kind, parts in found.slices.items() for row in parts}
    assert set(rows) == set(groups)
    for key, places in groups.items():
        expected = summarize(found.rank[places], found.user[places], cutoffs=(5,))
        assert rows[key]["metrics"] == pytest.approx(expected)
        assert rows[key]["targets"] == len(places)
        assert rows[key]["users"] == len(set(found.user[places]))


def test_slices_by_age_and_of_sets():
    ages = np.array([0, 6, 7, 400])
    trained = np.array([0, 1, 5, 6])
    facts = TargetFacts(
        np.array([5, 5, 5, 5000]), np.array([True, True, False, False]), trained, ages
    )
    ranks, users = np.array([1, 2, 3, 4]), np.array([0, 0, 0, 1])
    found = slice_metrics(ranks, users, facts, sets=True)
    names = [row["slice"] for row in found["item_age_days"]]
    assert names == ["0", "1-6", "7-29", "365+"]
    assert [row["slice"] for row in found["history_length"]] == ["1-9", "1000+"]
    assert [row["slice"] for row in found["item_training_events"]] == ["0", "1-5", "6+"]
    repeated = found["item"][0]["metrics"]
    assert repeated["recall@10"] == 1 and repeated["precision@10"] == 0.2


def test_data_without_times_have_no_ages():
    spec = EvalSpec("test", measures=Measures(slices=True))
    data = FakeDataset(LENGTHS, times=False)
    record = evaluate_heuristic(Heuristic("popularity"), data, spec, DATA).record(config={})
    assert record["slices"]["item_age_days"] is None
    assert "item age days: not known, the dataset has no times" in measures_tables([record])


def test_tables_and_records_hold_everything(dataset):
    evaluation = evaluate_heuristic(
        Heuristic("popularity"), dataset, EvalSpec("test", measures=ALL), DATA
    )
    record = json.loads(json.dumps(evaluation.record(config={})))
    assert record["cutoffs"] == [2, 5, 10]
    text = measures_tables([record])
    for word in ("precision", "recall", "map", "coverage %", "novelty bits", "repeated", "10-49"):
        assert word in text
    assert f"{100 * record['metrics']['map@5']:.2f}" in text
    assert "map@5" not in metrics_table([record])
    plain = evaluate_heuristic(Heuristic("popularity"), dataset, EvalSpec("test"), DATA)
    assert measures_tables([plain.record(config={})]) == ""


def test_a_row_per_user(dataset, tmp_path):
    method = FakeMethod(Config(data=DATA), dataset.num_items)
    found = evaluate(method, PARAMS, dataset, EvalSpec("test", measures=Measures((3,))))
    write_user_rows(tmp_path / "new" / "rows.parquet", found, dataset)
    rows = pl.read_parquet(tmp_path / "new" / "rows.parquet")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.parquet"]
    assert rows["user"].to_list() == [f"user{u}" for u, n in enumerate(LENGTHS) if n > 20]
    assert rows["history"].to_list() == [n - 10 for n in LENGTHS if n > 20]
    assert rows["targets"].to_list() == [10] * len(rows)
    by_user = user_metrics(found.rank, found.user, cutoffs=(3,))
    for name, values in by_user.items():
        assert rows[name].to_list() == values.tolist()
        assert rows[name].mean() == pytest.approx(found.metrics[name])
    for user, best in zip(np.unique(found.user), rows["best_rank"], strict=True):
        assert best == found.rank[found.user == user].min()
    assert "swapped_ndcg@10" in rows.columns
    assert user_rows(found, dataset).equals(rows)


def test_rows_that_cannot_be_written_are_a_user_error(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    found = evaluate_heuristic(Heuristic("popularity"), dataset, EvalSpec("test"), DATA)
    with pytest.raises(UserError, match="Cannot write .*rows.parquet"):
        write_user_rows(tmp_path / "file" / "rows.parquet", found, dataset)


@pytest.mark.parametrize("cutoffs", [["5", "x"], ["0"], ["-3"], ["5", "5"], ["1.5"], ["9" * 40]])
def test_wrong_cutoffs_are_refused(cutoffs):
    args = SimpleNamespace(cutoffs=cutoffs, list_metrics=False, slices=False)
    with pytest.raises(UserError, match="cutoffs=.* for example 5,10,20"):
        get_measures(args)


def test_flags_become_measures():
    args = SimpleNamespace(cutoffs=["5", " 10"], list_metrics=True, slices=False)
    assert get_measures(args) == Measures((5, 10), lists=True)
    assert Measures(lists=True).list_cutoffs == (10,)
