"""Filters of requests, against the ranking of all items without what they leave out."""

from __future__ import annotations

import json

import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream import runner
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import RejectedInput, parse_event
from rec2pm_jax.stream.lines.requests import Filters, ItemGroup, SeenRule, parse_filters, parse_line
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.stream import ListSource, make_config, make_data, make_recommender, raw_events

DAY_S = 86_400


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    data = make_data(tmp_path_factory.mktemp("filters"))
    names = [None if i % 5 == 4 else "ABC"[i % 3] for i in range(data.num_items)]
    data.items.categories = [None, *names]
    return data


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config())


def left_out(dataset, events, filters, time) -> set[str]:
    """The slow obvious rule: the raw ids of items that may not be recommended."""
    items = dataset.items
    category = dict(zip(items.raw_ids[1:], items.categories[1:], strict=True))
    out = set()
    rule = filters.get("exclude_seen")
    if rule:
        types = None if rule is True else rule.get("types")
        days = None if rule is True else rule.get("days")
        out |= {
            e["item"]
            for e in events
            if (types is None or e["type"] in types)
            and (days is None or e["time"] >= time - days * DAY_S)
        }

    def members(group):
        group = {"items": group} if isinstance(group, list) else group
        by_category = {i for i, c in category.items() if c in group.get("categories", ())}
        return set(group.get("items", ())) | by_category

    everything = set(items.raw_ids[1:])
    if "candidates" in filters:
        out |= everything - set(filters["candidates"])
    if "allow" in filters:
        out |= everything - members(filters["allow"])
    return out | members(filters.get("deny", []))


CASES = [
    {"exclude_seen": True},
    {"exclude_seen": {"types": ["k1"]}},
    {"exclude_seen": {"days": 1.5}},
    {"exclude_seen": {"types": ["k0"], "days": 2}, "deny": ["i3", "i4"]},
    {"candidates": ["i9", "i2", "i5", "i2", "i17"]},
    {"candidates": [f"i{n}" for n in range(20)], "exclude_seen": True, "deny": ["i1"]},
    {"allow": {"categories": ["A"], "items": ["i1", "i7"]}},
    {"allow": {"categories": ["A", "B"]}, "deny": {"categories": ["B"], "items": ["i6"]}},
    {"deny": [f"i{n}" for n in range(27)]},
]


@pytest.mark.smoke
@pytest.mark.parametrize("filters", CASES, ids=str)
def test_filters_leave_out_what_they_say_and_change_nothing_else(dataset, model, filters):
    """In Python and in a stream, for a user with memory and for one without events."""
    types = dataset.event_types
    filters = json.loads(json.dumps(filters).replace("k0", types[0]).replace("k1", types[1]))
    events = raw_events(dataset, 0)
    time = events[-1]["time"] + 3600
    engine = Engine(model, MemoryStore(), EngineOptions(seen="events"))
    engine.ingest([parse_event(event, "u") for event in events])
    user = model.observe(model.new_user(), events)
    for name, state, seen in (("u", user, events), ("new", model.new_user(), [])):
        everything = model.recommend(state, dataset.num_items, time=time)
        out = left_out(dataset, seen, filters, time)
        expected = [r for r in everything if r.item not in out][:8]
        for answer in (
            model.recommend(state, 8, time=time, filters=filters),
            engine.recommend(name, 8, time=time, filters=filters).items,
        ):
            assert [r[:2] for r in answer] == [r[:2] for r in expected]
            if seen:
                scores = [r.score for r in expected]
                assert [r.score for r in answer] == pytest.approx(scores, abs=1e-5)
    assert 0 < len(expected) <= 8


def test_users_of_a_batch_have_their_own_seen_items(dataset, model):
    users = [model.observe(model.new_user(), raw_events(dataset, i)) for i in range(4)]
    together = model.recommend_many(users, 6, filters={"exclude_seen": True})
    for user, answer in zip(users, together, strict=True):
        alone = model.recommend(user, 6, filters={"exclude_seen": True})
        assert [r.item for r in answer] == [r.item for r in alone]
        seen = {dataset.items.raw_ids[i] for i in user.seen.items}
        assert seen and not seen & {r.item for r in answer}


def test_a_store_keeps_what_users_have_seen(dataset, model):
    """The same after a restart, and beside the memory: without it records are as before."""
    events = [parse_event(event, "u") for event in raw_events(dataset, 1)]
    stores, answers = {}, {}
    for seen in ("none", "items", "events"):
        store = stores[seen] = MemoryStore()
        engine = Engine(model, store, EngineOptions(seen=seen))
        engine.ingest(events)
        engine.commit({})
        again = Engine(model, store, EngineOptions(seen=seen))
        if seen == "none":
            with pytest.raises(UserError, match="--seen=items"):
                again.recommend("u", 3, filters={"exclude_seen": True})
            continue
        answers[seen] = again.recommend("u", 9, filters={"exclude_seen": True})
    assert answers["items"] == answers["events"]
    distinct = len({event.item for event in events})
    plain, items = (len(dict(stores[name].items())["u"]) for name in ("none", "items"))
    assert items == plain + 4 + 4 * distinct
    with pytest.raises(UserError, match="seen 'none', not 'items'"):
        Engine(model, stores["none"], EngineOptions(seen="items"))
    with pytest.raises(UserError, match="--seen=events"):
        engine = Engine(model, stores["items"], EngineOptions(seen="items"))
        engine.recommend("u", 3, filters={"exclude_seen": {"types": dataset.event_types[:1]}})


def test_a_stream_counts_answers_that_are_short_and_skips_bad_filters(dataset, model):
    engine = Engine(model, MemoryStore())
    lines = [
        {"user": "u", "item": "i1", "time": 5},
        {"user": "u", "recommend": 5, "candidates": ["i1", "i2"]},
        {"user": "u", "recommend": 5, "candidates": ["i1", "gone"]},
        {"user": "u", "recommend": 5, "deny": {"categories": ["Z"]}},
        {"user": "u", "recommend": 5, "allow": {"kinds": ["Z"]}},
        {"user": "u", "recommend": 1, "candidates": ["i1", "i2"]},
    ]
    answers: list[str] = []
    source = ListSource(json.dumps(line).encode() + b"\n" for line in lines)
    summary = runner.run_stream(engine, source, answers.append)
    first, second = map(json.loads, answers)
    assert len(first["items"]) == 2 and first["wanted"] == 5
    assert len(second["items"]) == 1 and "wanted" not in second
    assert summary.fewer == 1 and summary.skipped == {"unknown item": 2, "malformed": 1}
    report = "\n".join(summary.format_report())
    assert "fewer items than wanted in 1 answers" in report
    assert "item 'gone' is not in the training data" in report


BAD = [
    ({"exclude_seen": 3}, '"exclude_seen" must be true'),
    ({"exclude_seen": {"days": 0}}, "above 0"),
    ({"exclude_seen": {"day": 1}}, "no field 'day'. Did you mean \"days\""),
    ({"exclude_seen": {"types": ["none"]}}, "event type 'none' is unknown"),
    ({"exclude_seen": {"days": 1}}, "needs the time of the request"),
    ({"candidates": []}, "is empty"),
    ({"candidates": [None]}, '"candidates" must hold'),
    ({"allow": {"items": ["x"]}}, "item 'x' is not in the training data"),
    ({"deny": {"categories": ["a"]}}, "category 'a' is unknown"),
    ({"denied": ["i1"]}, "has no field 'denied'"),
]


@pytest.mark.parametrize(("filters", "message"), BAD, ids=str)
def test_bad_filters_are_one_line(model, filters, message):
    with pytest.raises(RejectedInput) as error:
        model.recommend(model.new_user(), 3, filters=filters)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_parsing():
    line = b'{"user": 7, "recommend": 3, "exclude_seen": "all", "deny": [4], "other": 1}'
    filters = parse_line(line).filters
    assert filters == Filters(SeenRule(), None, None, ItemGroup(("4",)))
    assert parse_filters(filters) is filters
    assert parse_filters({"exclude_seen": False}) == Filters()
