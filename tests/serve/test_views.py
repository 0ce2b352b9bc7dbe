"""What the page shows, against plain calls of the model with whole histories."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve import views
from rec2pm_jax.serve.known_events import KnownEvents, KnownHistory, PastEvent
from rec2pm_jax.serve.other_runs import OtherRun, load_other_runs
from rec2pm_jax.serve.users import expect_from_memory
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import Event, RejectedInput
from rec2pm_jax.stream.options import EngineOptions, Worker
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import MemoryStore
from rec2pm_jax.typing import Events
from tests.helpers.stream import (
    RECENT,
    SEGMENT,
    make_config,
    make_data,
    make_recommender,
    raw_events,
    save_run,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("views"))


def _model(dataset, *args, **kwargs) -> Recommender:
    made = make_recommender(dataset, make_config(*args, **kwargs))
    return dataclasses.replace(made, dataset=dataset)


def _engine(model, known=True) -> Engine:
    options = EngineOptions(known_users=known, max_ahead_s=float("inf"))
    return Engine(model, MemoryStore(), options)


def _longest(dataset) -> str:
    return dataset.user(int(np.argmax(dataset.lengths)))


def _events(dataset, name) -> list[dict]:
    return raw_events(dataset, dataset.user_index(name))


def _as_event(name, fields) -> Event:
    return Event(name, fields["item"], fields["time"], fields["type"])


def _names(column) -> list[str]:
    return [item["item"] for item in column["items"]]


def _assert_same(column, expected) -> None:
    assert _names(column) == [best.item for best in expected]
    scores = [item["score"] for item in column["items"]]
    np.testing.assert_allclose(scores, [best.score for best in expected], rtol=1e-4, atol=1e-4)


KINDS = [("rec2pm", "overwrite", 0, True), ("kv_mask", "append", 2, False)]


@pytest.mark.parametrize(("method", "memory", "types", "times"), KINDS)
def test_reads_side_by_side(dataset, method, memory, types, times):
    """Both: the engine's answer. Memory: `Method.read` of one neutral event. Recent: a new user's."""
    model = _model(dataset, method, memory, types=types, times=times)
    engine, name = _engine(model), _longest(dataset)
    user = engine.get_user(name)
    asked = user.last_time + 3600
    both, alone, recent = views.compare_reads(model, user, 5, asked)
    assert [c["name"] for c in (both, alone, recent)] == [views.BOTH, views.MEMORY, views.RECENT]
    _assert_same(both, engine.recommend(name, 5, time=asked).items)

    raw = _events(dataset, name)[-len(user.pending.ids) :]
    _assert_same(recent, model.recommend(model.observe(model.new_user(), raw), 5, time=asked))

    one = np.ones((1, 1), np.int32)
    when, kind = (f if f is None else f[:1, None] for f in user.pending[1:])
    readout = jax.jit(model.method.read)(
        model.params,
        type(user.state)(*(_with_batch(field) for field in user.state)),
        Events(0 * one, when, kind),
        one > 0,
        np.array([asked - user.time_origin], np.int32) if times else None,
    )
    scores = np.asarray(model.method.score(model.params, readout))[0]
    best = np.argsort(-scores, kind="stable")[:5]
    assert _names(alone) == [model.catalogue.items.raw_ids[i] for i in best]
    np.testing.assert_allclose(
        [item["score"] for item in alone["items"]], scores[best], rtol=1e-4, atol=1e-4
    )
    expected = expect_from_memory(model, user, 5, asked)
    assert [item.item for item in expected] == _names(alone)
    assert len({tuple(_names(c)) for c in (both, alone, recent)}) == 3, "the reads do not differ"


def _with_batch(field):
    return type(field)(*map(_with_batch, field)) if isinstance(field, tuple) else field[None]


def test_users_without_memory_or_events(dataset):
    model = _model(dataset, times=True)
    engine = _engine(model, known=False)
    [popular] = views.compare_reads(model, engine.get_user("new"), 3)
    assert _names(popular) == [best.item for best in model.recommend(model.new_user(), 3)]
    assert "No events yet" in popular["note"]

    raw = _events(dataset, _longest(dataset))
    engine.apply([_as_event("new", fields) for fields in raw[:2]])
    user = engine.get_user("new")
    _, alone, recent = views.compare_reads(model, user, 3)
    left = SEGMENT + RECENT - 2
    assert alone["items"] == [] and alone["note"] == f"Empty until {left} more events."
    assert len(recent["items"]) == 3 and expect_from_memory(model, user, 3) == []
    engine.apply([_as_event("new", fields) for fields in raw[2 : 2 + left]])
    assert len(views.compare_reads(model, engine.get_user("new"), 3)[1]["items"]) == 3

    full = _model(dataset, "full")
    [only] = views.compare_reads(full, _engine(full).get_user(dataset.user(0)), 3)
    assert only["name"] == views.RECENT and "note" not in only
    with pytest.raises(RejectedInput, match="between 1 and"):
        views.compare_reads(model, user, 10**6)


@pytest.mark.parametrize("times", [True, False])
def test_whole_histories_are_known_while_a_person_looks(dataset, times):
    """Events that have entered the memory stay known; without looks they do not."""
    model = _model(dataset, times=times)
    engine, known, name = _engine(model), KnownEvents(), _longest(dataset)
    raw = _events(dataset, name)
    wanted = [fields["item"] for fields in raw]
    for step in range(4 * SEGMENT):
        user, history = known.look_up(engine, name)
        assert [event.item for event in history.events] == wanted and history.first == 0
        added = raw[step] | {"time": user.last_time + 60}
        engine.apply([_as_event(name, added)])
        wanted.append(added["item"])
    engine.apply([_as_event(name, added)] * (SEGMENT + RECENT))  # more than is ever pending
    user, history = known.look_up(engine, name)
    pending = len(user.pending.ids)
    assert history.first == user.events - pending and len(history.events) == pending


def test_histories_start_with_the_dataset_only_if_users_do(dataset):
    model, name = _model(dataset, times=True), _longest(dataset)
    engine = _engine(model, known=False)
    raw = _events(dataset, name)[:3]
    engine.apply([_as_event(name, fields) for fields in raw])
    assert len(KnownEvents().look_up(engine, name)[1].events) == 3
    assert views.find_stored_users(engine.store, "", 5) == []  # nothing is committed
    engine.commit({})
    assert views.find_stored_users(engine.store, name, 5) == [{"user": name, "events": None}]
    workers = [Worker(0, 2), Worker(1, 2)]
    found = [views.find_stored_users(engine.store, name, 5, worker) for worker in workers]
    assert sorted(map(len, found)) == [0, 1]  # another worker's user is not suggested
    described = views.describe_user(engine, name, *KnownEvents().look_up(engine, name), limit=2)
    assert described["events"] == described["pending"] == 3 and described["updates"] == 0
    newest = [(event["item"], event["time"]) for event in described["last_events"]]
    assert newest == [(fields["item"], fields["time"]) for fields in raw[:0:-1]]


def test_an_unknown_item_is_shown_as_such(dataset):
    engine = _engine(_model(dataset, times=True), known=False)
    engine.apply([Event("u", "no such item", 1)])
    described = views.describe_user(engine, "u", *KnownEvents().look_up(engine, "u"), limit=5)
    assert described["last_events"] == [
        {"item": None, "title": "unknown item", "time": 1, "type": None}
    ]


def test_users_and_items_are_found(dataset):
    model = _model(dataset, times=True)
    items = model.catalogue.items
    everyone = [dataset.user(i) for i in range(len(dataset))]
    start = everyone[-1][:1]
    found = views.find_users(dataset, start, 100)
    assert [row["user"] for row in found] == [u for u in everyone if u.startswith(start)]
    assert found[-1]["events"] == dataset.lengths[-1]
    assert len(views.find_users(dataset, "", 2)) == 2
    parts = [views.find_users(dataset, "", 100, Worker(index, 2)) for index in range(2)]
    assert sorted(row["user"] for part in parts for row in part) == sorted(everyone)
    wanted = items.raw_ids[7]
    rows = views.find_items(model, wanted.upper(), 100)
    by_count = sorted(range(1, len(items.raw_ids)), key=lambda i: -items.counts[i])
    matching = [
        items.raw_ids[i] for i in by_count if wanted.casefold() in items.titles[i].casefold()
    ]
    assert [row["item"] for row in rows] == matching
    assert views.find_items(model, "no such title", 5) == []


def test_another_run_reads_the_same_history(dataset, tmp_path):
    """Its answer is that to all events observed at once, however they came."""
    model, name = _model(dataset, times=True), _longest(dataset)
    engine, known = _engine(model), KnownEvents()
    config = make_config("full", times=True)
    save_run(tmp_path / "long", dataset, config)
    [run] = load_other_runs([str(tmp_path / "long")], model)
    assert run.name == "full history (long)"
    raw = _events(dataset, name)
    for _ in range(3):
        user, history = known.look_up(engine, name)
        asked = user.last_time + 60
        full = run.recommender
        expected = full.recommend(full.observe(full.new_user(), raw), 5, time=asked)
        _assert_same(run.read(name, history, 5, asked), expected)
        raw.append(raw[3] | {"time": user.last_time + 30})
        engine.apply([_as_event(name, raw[-1])])
    column = run.read("other", KnownHistory([PastEvent(raw[0]["item"], 9, raw[0]["type"])], 7), 5)
    assert column["note"].startswith("Reads the newest 1 of 8 events")


def test_runs_on_other_data_are_refused(dataset, tmp_path):
    model = _model(dataset)
    with pytest.raises(UserError, match=r"--compare=.*nothing"):
        load_other_runs([str(tmp_path / "nothing")], model)
    (tmp_path / "other").mkdir()
    small = make_data(tmp_path / "other")
    small.info["content_hash"] = "0" * 64
    save_run(tmp_path / "run", small, make_config("full"))
    with pytest.raises(UserError, match=r"--compare=.*run"):
        load_other_runs([str(tmp_path / "run")], model)


def test_a_run_gets_only_new_events(dataset):
    model = _model(dataset, times=True)
    run = OtherRun("x", model)
    events = [
        PastEvent(f["item"], f["time"], f["type"]) for f in _events(dataset, _longest(dataset))
    ]
    run.read("1", KnownHistory(events[:-2], 0), 3)
    observed = []
    run.recommender = _Counting(model, observed)  # type: ignore[assignment]
    run.read("1", KnownHistory(events, 0), 3)
    assert observed == [2]
    run.read("1", KnownHistory(events[:3], 0), 3)  # the user was forgotten and came back
    assert observed == [2, 3]


class _Counting:
    def __init__(self, model, observed):
        self._model, self._observed = model, observed

    def observe(self, user, events, **options):
        self._observed.append(len(events))
        return self._model.observe(user, events, **options)

    def __getattr__(self, name):
        return getattr(self._model, name)
