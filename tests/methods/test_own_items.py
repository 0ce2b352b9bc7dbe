"""Scores of all methods against a slow ranking: dot products, and sums of addends item by item."""

from __future__ import annotations

import functools
from collections import defaultdict

import jax
import numpy as np
import pytest

from rec2pm_jax.config import Config, DataConfig, MethodConfig, ModelConfig
from rec2pm_jax.methods.own_items import GAIN
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.methods.windows import UNKNOWN_TIME
from rec2pm_jax.nn.catalogue.losses import sample_negatives
from rec2pm_jax.typing import Events, OwnItems, Readout
from tests.helpers.methods import (
    ITEMS,
    batch_of,
    histories,
    large_parameters,
    make,
    random_state,
)
from tests.helpers.numpy_reference import gap_bucket

S = 3
LENGTHS = [4, 2, 1, 3]
METHODS = ["full", "recent", "rec2pm", "tok_serial", "kv_mask"]


def weight_bucket(number):
    """0 -> 0, 1 -> 2, 2 -> 4, 3 -> 5, 4 .. 5 -> 6, 6 .. 7 -> 7, ..; at most 35."""
    octave = int(number).bit_length()
    upper = octave > 1 and 2 * number >= 3 * 2 ** (octave - 1)
    return min(2 * octave + upper, 35)


def slow_addends(params, config, exact, segments, events, row, asked, vector):
    """{item: addend} at event `row`; `asked` is its query time, None if that is not known.

    Args:
      params: of the method.
      exact: (item, weight, last) of the entries in use.
      events: (item, time) of the raw events; times are None without.
      vector: [D], what scores the catalogue.
    """
    added = defaultdict(float)
    own, table = params["own_items"], np.asarray(params["embedding"]["item_embedding"], np.float64)
    known = 1 if asked is not None or not config.uses_times else 0
    asked = events[row][1] if asked is None else asked

    def unit(item):
        return table[item] / np.linalg.norm(table[item])

    def score(part, item, seconds):
        bucket = gap_bucket(seconds)
        return own[part]["gap"][known][bucket] + own[part]["item_gap"][bucket] @ unit(item)

    for item, weight, last in exact:
        total = 256 * S * min(segments, 16)
        if config.uses_times:
            gap = asked // 60 - last
        else:
            gap = segments * S + row + 1 - last
        parts = (
            own["weight"][weight_bucket(weight)],
            own["share"][weight_bucket(total // weight)],
            score("exact", item, 60 * gap),
        )
        added[item] += GAIN * sum(map(float, parts))
    for place, (item, time) in enumerate(events[: row + 1]):
        gap = asked - time if config.uses_times else 60 * (row + 1 - place)
        added[item] += GAIN * float(score("raw", item, gap))
    for item in added:
        added[item] += GAIN * float(np.asarray(vector, np.float64) @ own["query"] @ unit(item))
    return added


def slow_scores(method, params, vector, added):
    """Logits [V - 1] of the items from 1 on, in float64."""
    config = method.config
    table = np.asarray(params["embedding"]["item_embedding"], np.float64)[1:]
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    vector = np.asarray(vector, np.float64)
    scores = table @ (vector / np.linalg.norm(vector)) / config.loss.temperature
    for item, addend in added.items():
        scores[item - 1] += addend
    return scores


def case_of(name, times):
    """(method, params, state, events, valid): tables of random items at some time before."""
    method, params = make(
        name=name,
        recent=2,
        memory="append" if name == "kv_mask" else "overwrite",
        model=(("use_times", times), ("layers", 2 if name == "kv_mask" else 1)),
    )
    events, valid = histories(LENGTHS, max(LENGTHS), times=times)
    if name == "full":
        return method, params, method.init_state(params, 4), events, valid
    state = random_state(method, [1, 1, 0, 1])
    if name == "recent":
        state = state._replace(memory=state.memory[:, :0])
    if times:  # archived events happened some minutes before the raw ones
        events = events._replace(times=np.where(valid, events.times + 10**6, 0))
        last = np.where(state.exact.items > 0, 10**6 // 60 - state.exact.last**3, 0)
        state = state._replace(exact=state.exact._replace(last=last))
    return method, params, state, events, valid


@pytest.mark.parametrize("times", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_scores_are_those_of_a_slow_ranking(name, times):
    """After every event. Two requests have a time, one is at its last event, one has none."""
    method, params, state, events, valid = case_of(name, times)
    request = None
    if times:
        last = events.times.max(axis=1)
        request = np.array([last[0] + 40, UNKNOWN_TIME, last[2], last[3] + 10**7], np.int32)
    readout = jax.jit(method.read_all)(params, state, events, valid, request)
    scores = np.asarray(jax.jit(method.score)(params, readout))
    assert (scores[..., 0] == -np.inf).all()
    params = jax.tree.map(np.asarray, params)
    for user, length in enumerate(LENGTHS):
        clocks = [None] * length if events.times is None else events.times[user, :length].tolist()
        raw = list(zip(events.ids[user, :length].tolist(), clocks, strict=True))
        entries = zip(*(a[user].tolist() for a in state.exact), strict=True)
        entries = [entry for entry in entries if entry[0]]
        asks = clocks[1:] + [request[user] if times and request[user] != UNKNOWN_TIME else None]
        for row in range(length):
            asked = None if asks[row] is None else int(asks[row])
            vector = readout.vectors[user, row]
            added = slow_addends(
                params, method.config, entries, int(state.segments[user]), raw, row, asked, vector
            )
            expected = slow_scores(method, params, vector, added)
            np.testing.assert_allclose(scores[user, row, 1:], expected, rtol=0, atol=2e-3)
            assert max(map(abs, added.values())) > 0.01  # it matters


def test_what_the_state_and_the_head_add_can_be_left_out():
    events, valid = histories([3], 3)
    for entries, repeat, count in [(4, True, 7), (0, True, 3), (4, False, 4), (0, False, None)]:
        method, params = make(exact_entries=entries, model=(("repeat_head", repeat),))
        shapes = jax.eval_shape(method.read, params, method.init_state(params, 1), events, valid)
        assert (None if shapes.own is None else shapes.own.ids.shape[1]) == count
        assert ("own_items" in params) == (count is not None)


def test_fresh_weights_add_nothing():
    method, _ = make()
    params = jax.jit(method.init)(jax.random.key(0))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(params["own_items"]))


@pytest.mark.parametrize(("entries", "repeat"), [(2, True), (4, False), (0, True)])
def test_candidates_of_a_row_are_its_negatives_and_what_it_has_seen(entries, repeat):
    """Sampled softmax by hand: own items count once, and only from their first event on."""
    method, params = make(
        name="recent",
        exact_entries=entries,
        loss=(("negatives", 3),),
        model=(("layers", 1), ("repeat_head", repeat)),
    )
    batch = batch_of([10, 6], 10)
    total, weight = jax.jit(lambda p, b: method.loss(p, b, None))(params, batch)["ar"]
    drawn = sample_negatives(method.config.loss, ITEMS, jax.random.key(0), np.zeros(1, np.int32))
    read_all, update = jax.jit(method.read_all), jax.jit(method.update)
    state, expected, count, future = method.init_state(params, 2), 0.0, 0, 0
    for h in range(3):
        ids = batch["ids"][:, h * S : h * S + S + 1]
        inputs, targets = Events(ids[:, :-1]), ids[:, 1:]
        valid = inputs.ids > 0
        logits = np.asarray(method.score(params, read_all(params, state, inputs, valid)))
        for user, row in np.argwhere(targets > 0):
            table = set(np.asarray(state.exact.items)[user])
            seen = set(ids[user, : row + 1]) if repeat else set()
            own = (table | seen) - {0, targets[user, row]}
            future += len(set(ids[user, row + 2 :]) - own - {0})
            others = [i for i in drawn.tolist() if i not in own and i != targets[user, row]]
            chosen = logits[user, row, [targets[user, row], *own, *others]].astype(np.float64)
            expected += np.log(np.sum(np.exp(chosen))) - chosen[0]
            count += 1
        state = update(params, state, inputs, valid)
    assert future > 3 and weight == count
    np.testing.assert_allclose(total, expected, rtol=1e-5)


# --- the best items ---


@functools.cache
def large_method(items):
    config = Config(
        data=DataConfig(segment=S, segments=2),
        model=ModelConfig(layers=1, heads=1, dim=4, dropout=0.0),
        method=MethodConfig(name="recent", exact_entries=2),
    )
    method = make_method(config, items)
    return method, large_parameters(method)


@pytest.mark.parametrize(
    ("items", "users", "k"),
    [
        (ITEMS, 3, 1),
        (ITEMS, 3, ITEMS),
        pytest.param(70_001, 3, 20, id="runs of one product"),
        pytest.param(70_001, 5, 20, id="blocks"),
    ],
)
def test_the_best_are_the_first_of_all_scores(items, users, k):
    """Own items leave the best k and enter them; some occur twice."""
    method, params = large_method(items)
    rng = np.random.default_rng(items + users)
    vectors = rng.normal(size=(users, 4)).astype(np.float32)
    plain = np.asarray(method.score(params, Readout(vectors, None)))
    best = np.argsort(-plain, axis=1)[:, :3].astype(np.int32)  # these leave
    ids = np.concatenate([best, rng.integers(0, items + 1, (users, 4)).astype(np.int32)], axis=1)
    ids = np.concatenate([ids, ids[:, 2:5]], axis=1)
    addends = rng.normal(0, 30, ids.shape).astype(np.float32)
    addends[:, :3] = -60
    readout = Readout(vectors, OwnItems(ids, addends))
    scores = np.asarray(method.score(params, readout))
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert k == items or not np.array_equal(expected, np.argsort(-plain, axis=1)[:, :k])
    for catalogue in (None, method.catalogue(params)):
        found, at = jax.jit(method.best, static_argnums=2)(params, readout, k, catalogue)
        np.testing.assert_allclose(found, np.take_along_axis(scores, expected, 1), atol=1e-4)
        np.testing.assert_array_equal(at, expected)
