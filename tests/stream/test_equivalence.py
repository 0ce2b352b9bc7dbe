"""Streamed answers equal the offline evaluation's, however the stream is cut."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.methods.segments import archived
from rec2pm_jax.stream.compute import batches
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import Event
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.runner import run_stream
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.data import prepare_log, random_log
from tests.helpers.stream import (
    RECENT,
    SEGMENT,
    ListSource,
    make_config,
    make_data,
    make_recommender,
    offline_logits,
    raw_events,
)

CONFIGS = {
    "rec2pm_o sasrec": make_config(),
    "rec2pm_o hstu, times and types": make_config(backbone="hstu", bias="position_time", types=2),
    "rec2pm_a sasrec": make_config(memory="append"),
    "rec2pm_a hstu": make_config(memory="append", backbone="hstu", bias="position"),
    "tok_serial_a sasrec": make_config("tok_serial", memory="append"),
    "kv_mask_o hstu, times and types": make_config(
        "kv_mask", backbone="hstu", bias="position_time", types=2
    ),
    "kv_mask_a sasrec": make_config("kv_mask", memory="append"),
    "linear_recurrence, times": make_config("linear_recurrence", times=True),
    "rec2pm_o sasrec, times": make_config(times=True),
    "recent sasrec": make_config("recent"),
    "recent hstu, times and types": make_config(
        "recent", backbone="hstu", bias="position_time", types=2
    ),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("stream"))


@pytest.mark.smoke
@pytest.mark.parametrize("name", CONFIGS)
def test_streamed_scores_are_those_of_evaluation(dataset, name):
    recommender = make_recommender(dataset, CONFIGS[name])
    longest = int(np.argmax(dataset.lengths))
    assert dataset.lengths[longest] > 3 * (SEGMENT * 3 + RECENT)  # past every window and group
    positions = [(longest, n) for n in range(1, dataset.lengths[longest], 2)] + [(2, 9), (4, 26)]
    offline = offline_logits(recommender, dataset, positions)

    users = {}
    for (index, n), expected in zip(positions, offline, strict=True):
        user = users.get(index, recommender.new_user())
        events = raw_events(dataset, index)
        user = users[index] = recommender.observe(user, events[user.events : n])
        answer = recommender.recommend(user, dataset.num_items, time=events[n]["time"])
        ids = [dataset.items.id_of(r.item) for r in answer]
        assert sorted(ids) == list(range(1, dataset.num_items + 1))
        scores = [r.score for r in answer]
        # 1e-5 on the cosines, which the temperature of .05 makes twenty times larger.
        np.testing.assert_allclose(scores, expected[ids], rtol=0, atol=2e-4)
        assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rec2pm_o hstu, times and types", "kv_mask_a sasrec"])
def test_a_thousand_streamed_users_are_answered_as_evaluated(tmp_path, name):
    """Stream all events before the test targets, then one request per user."""
    log = random_log(users=1010, items=30, events=16_000, seed=5)
    prepare_log(log, tmp_path, type_column="kind")
    dataset = open_dataset(tmp_path / "data")
    recommender = make_recommender(dataset, CONFIGS[name])
    assert dataset.lengths.max() > 10 * SEGMENT
    spec = EvalSpec("test", protocol="leave_one_out", swap=False)
    offline = evaluate(recommender.method, recommender.params, dataset, spec)
    users = len(offline.user)
    assert users == len(np.unique(offline.user)) >= 1000

    events = [raw_events(dataset, int(user), int(n) + 1) for user, n in _targets(offline)]
    turns = np.repeat(np.arange(users), [len(history) - 1 for history in events])
    waiting = [iter(history) for history in events]
    shuffled = np.random.default_rng(0).permutation(turns)
    lines = [{"user": f"u{row}"} | next(waiting[row]) for row in shuffled]
    lines += [
        {"user": f"u{row}", "recommend": dataset.num_items, "time": history[-1]["time"]}
        for row, history in enumerate(events)
    ]
    answers = []
    engine = Engine(recommender, MemoryStore())
    source = ListSource(json.dumps(line).encode() + b"\n" for line in lines)
    summary = run_stream(engine, source, lambda line: answers.append(json.loads(line)))
    assert (summary.events, summary.answers, summary.skipped.total()) == (len(turns), users, 0)
    assert summary.updates > users

    wanted = offline_logits(recommender, dataset, _targets(offline).tolist())
    got = np.empty(users, np.int64)
    for row, answer in enumerate(answers):
        ids = [dataset.items.id_of(item["item"]) for item in answer["items"]]
        scores = np.array([item["score"] for item in answer["items"]])
        np.testing.assert_allclose(scores, wanted[row, ids], rtol=0, atol=2e-4)
        got[row] = 1 + ids.index(dataset.items.id_of(events[row][-1]["item"]))
        # Of scores that differ by rounding either may come first.
        assert abs(scores[got[row] - 1] - scores[offline.rank[row] - 1]) < 4e-4
    assert np.mean(got == offline.rank) > 0.99


def _targets(evaluation) -> np.ndarray:
    return np.stack([evaluation.user, evaluation.position], axis=1)


@pytest.mark.parametrize("name", ["rec2pm_o sasrec", "recent hstu, times and types"])
def test_a_request_without_time_is_evaluated_without_time(dataset, name):
    recommender = make_recommender(dataset, CONFIGS[name])
    events = raw_events(dataset, 0, 13)
    user = recommender.observe(recommender.new_user(), events)
    unknown = recommender.recommend(user, dataset.num_items)
    [expected] = offline_logits(recommender, dataset, [(0, 13)], time_known=False)
    ids = [dataset.items.id_of(r.item) for r in unknown]
    np.testing.assert_allclose([r.score for r in unknown], expected[ids], rtol=0, atol=2e-4)
    for seconds in (0, 10**6):
        asked = recommender.recommend(user, dataset.num_items, time=events[-1]["time"] + seconds)
        assert (asked == unknown) == ("times" not in name)


def test_many_users_are_answered_as_one_by_one(dataset):
    recommender = make_recommender(dataset, CONFIGS["rec2pm_o hstu, times and types"])
    users = [recommender.new_user()]
    for index, n in ((0, 3), (1, 14), (4, 26)):
        users.append(recommender.observe(users[0], raw_events(dataset, index, n)))
    users.insert(2, users[0])
    together = recommender.recommend_many(users, 4, exclude=["i1"])
    for user, answer in zip(users, together, strict=True):
        expected = recommender.recommend(user, 4, exclude=["i1"])
        assert [r.item for r in answer] == [r.item for r in expected]
        # None, for the users without events, becomes NaN.
        scores = [np.array([r.score for r in found], float) for found in (answer, expected)]
        assert np.isnan(scores[0]).all() == (not user.events)
        np.testing.assert_allclose(*scores, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["rec2pm_o sasrec", "kv_mask_a sasrec", "recent sasrec", "full"])
def test_memory_and_pending_events_of_a_user(dataset, name):
    config = CONFIGS.get(name, make_config("full"))
    recommender = make_recommender(dataset, config)
    method, slots = recommender.method, config.method.slots
    # rec2pm: D floats per slot; kv_mask: keys and values of two layers.
    family = name.split()[0]
    groups, width = {"rec2pm_o": (1, 1), "kv_mask_a": (3, 4)}.get(family, (0, 0))
    user = recommender.new_user()
    for n, event in enumerate(raw_events(dataset, 0), start=1):
        user = recommender.observe(user, [event])
        assert user.state.memory.nbytes == groups * slots * width * config.model.dim * 4
        assert user.events == n
        kept = len(user.pending.ids)
        assert user.state.exact.items.shape == (0 if family == "full" else 4,)
        if family != "full":  # `recent` folds segments into its exact memory
            assert kept == n - archived(n, SEGMENT, RECENT)
            assert n < RECENT or RECENT <= kept <= SEGMENT + RECENT - 1
            assert recommender.count_updates(user) == archived(n, SEGMENT, RECENT) // SEGMENT
        else:
            assert kept == min(n, method.read_length)
            assert recommender.count_updates(user) == 0
        newest = dataset.sequence(0).ids[n - kept : n]
        np.testing.assert_array_equal(user.pending.ids, newest)


def engine_of(recommender, calls):
    engine = Engine(recommender, MemoryStore())
    for call in calls:
        engine.ingest(call)
    return engine


def assert_same_user(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got.pending, expected.pending)
    assert (got.events, got.last_time) == (expected.events, expected.last_time)
    jax.tree.map(np.testing.assert_array_equal, got.state[1:], expected.state[1:])
    np.testing.assert_allclose(got.state.memory, expected.state.memory, rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_chunking_and_interleaving_change_nothing(dataset, data):
    recommender = make_recommender(dataset, CONFIGS["rec2pm_a sasrec"])
    lengths = {i: data.draw(st.integers(0, int(dataset.lengths[i]))) for i in (0, 1, 4, 5)}
    turns = data.draw(st.permutations([i for i, n in lengths.items() for _ in range(n)]))
    waiting = {i: iter(raw_events(dataset, i)) for i in lengths}
    stream = [Event(f"u{i}", **next(waiting[i])) for i in turns]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    bounds = zip([0, *cuts], [*cuts, len(stream)], strict=True)
    engine = engine_of(recommender, [stream[a:b] for a, b in bounds])
    for index, n in lengths.items():
        alone = recommender.observe(recommender.new_user(), raw_events(dataset, index, n))
        assert_same_user(engine.get_user(f"u{index}"), alone)


def test_many_users_compile_nothing_while_serving(dataset, monkeypatch):
    monkeypatch.setattr(batches, "MAX_BATCH", 8)
    recommender = make_recommender(dataset, CONFIGS["rec2pm_o sasrec"])
    history = raw_events(dataset, 0, 40)

    def stream(users):  # user u has 12 + u % 29 events, so batches shrink as they go
        return [Event(f"u{u}", **e) for u in range(users) for e in history[: 12 + u % 29]]

    engine = engine_of(recommender, [stream(29)])
    for u in range(29):
        answer = engine.recommend(f"u{u}", 4)
        alone = recommender.observe(recommender.new_user(), history[: 12 + u % 29])
        assert_same_user(engine.get_user(f"u{u}"), alone)
        expected = recommender.recommend(alone, 4)
        assert [r.item for r in answer.items] == [r.item for r in expected]
        assert (answer.events, answer.updates) == (alone.events, recommender.count_updates(alone))

    for users in (1, 2, 4, 8):  # every bucket
        engine_of(recommender, [stream(users)]).recommend("u0", 4)

    def traced(*_):
        raise AssertionError("compiled in steady state")

    monkeypatch.setattr(type(recommender.method), "update", traced)
    for name in ("read", "open_session", "step_session", "read_session"):
        monkeypatch.setattr(type(recommender.method), name, traced)
    for users in (3, 5, 7, 12, 21, 30):
        engine_of(recommender, [stream(users)]).recommend("u1", min(users, 16))


@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize(
    "name",
    [
        "rec2pm_a hstu",
        "kv_mask_o hstu, times and types",
        "recent sasrec",
        "rec2pm_o sasrec, times",
    ],
)
def test_open_sessions_answer_as_whole_reads(dataset, name, kind):
    """Requests after 0 to 12 further events, at various times, of more users than sessions."""
    recommender = make_recommender(dataset, CONFIGS[name])
    engine = Engine(recommender, MemoryStore(), EngineOptions(memory=kind, sessions=2))
    rng = np.random.default_rng(0)
    waiting = {f"u{i}": raw_events(dataset, i) for i in (0, 1, 4)}
    for turn in range(60):
        user = str(rng.choice(["u0", "u1", "u4"], p=[0.6, 0.3, 0.1]))
        count = int(rng.choice([0, 0, 1, 1, 1, 2, 12], p=[0.2, 0.1, 0.2, 0.2, 0.1, 0.15, 0.05]))
        engine.ingest([Event(user, **e) for e in waiting[user][:count]])
        waiting[user] = waiting[user][count:]
        state = engine.get_user(user)
        if not state.events:
            continue
        later = None if turn % 3 else state.last_time + 1000 * turn
        answer = engine.recommend(user, 5, time=later)
        expected = recommender.recommend(state, 5, time=later)
        np.testing.assert_allclose(
            [r.score for r in answer.items], [r.score for r in expected], rtol=0, atol=2e-4
        )
        assert answer.updates == recommender.count_updates(state) == int(state.state.segments)
    assert engine.sessions.hits > 5 and engine.sessions.misses > 5


@pytest.mark.smoke
def test_old_states_stay_valid(dataset):
    recommender = make_recommender(dataset, CONFIGS["rec2pm_o sasrec"])
    history = raw_events(dataset, 0)
    old = recommender.observe(recommender.new_user(), history[:20])
    before = jax.tree.map(np.copy, (old.state, old.pending))
    recommender.observe(old, history[20:])
    jax.tree.map(np.testing.assert_array_equal, (old.state, old.pending), before)
    assert recommender.new_user().events == 0
